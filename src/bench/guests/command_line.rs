//! The exact command lines of ours and of its peers.
//!
//! All get the same kernel, initramfs, words, memory and vCPUs. QEMU is at its best: KVM, no default
//! devices, no firmware's menus, the uncompressed kernel (PVH), and a modern virtio-net with all offloads,
//! MSI-X, event index and an ioeventfd for each queue, which are its defaults. Halt polling is KVM's and
//! so the same for all.

use std::fmt;
use std::path::{Path, PathBuf};

use super::peer::Peer;

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(pub Vec<String>);

impl CommandLine {
    /// Of words with a blank between them.
    pub fn words(words: &str) -> Self {
        CommandLine(words.split_whitespace().map(Into::into).collect())
    }

    /// Adds `words`.
    pub fn with<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.0.extend(words.into_iter().map(Into::into));
        self
    }
}

impl fmt::Display for CommandLine {
    /// As a shell takes it; a script is only named.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, word) in self.0.iter().enumerate() {
            let gap = if idx == 0 { "" } else { " " };
            match word {
                word if word.contains('\n') => write!(f, "{gap}SCRIPT")?,
                word if word.is_empty() || word.contains([' ', '\'', '$', '&', ';']) => {
                    write!(f, "{gap}'{}'", word.replace('\'', "'\\''"))?;
                }
                word => write!(f, "{gap}{word}")?,
            }
        }
        Ok(())
    }
}

/// What all guests boot.
#[derive(Debug, Clone)]
pub struct Images {
    /// This program.
    pub alacrity: PathBuf,
    /// vmlinux.
    pub kernel: PathBuf,
    /// Root file system of the guests.
    pub initrd: PathBuf,
}

/// Words that all kernels get; ours adds those itself.
const WORDS: &str = "console=ttyS0 quiet panic=-1 8250.nr_uarts=2 reboot=panic_warm";
/// Words of guests that only start.
const BOOT_WORDS: &str = "alacrity.marker alacrity.poweroff";
/// MiB of guest memory.
pub const MEMORY_MIB: u32 = 512;
/// Size of QEMU's receive queues; those for transmission have 256, its most for a TAP.
const QEMU_RX_QUEUE: u32 = 512;

/// An interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nic {
    /// `--venet` (or `--net`) of ours, which makes the TAP and gives both ends an address.
    Ours {
        /// venet, else virtio-net.
        is_venet: bool,
        /// Name of the TAP.
        tap: String,
        /// Address of the host's end.
        host: String,
        /// Address of the guest's end.
        guest: String,
        /// Queue pairs, of virtio-net.
        queues: u32,
    },
    /// `--bus` of the daemon at this socket.
    Bus {
        /// The bus.
        bus: String,
        /// The daemon's socket.
        socket: PathBuf,
    },
    /// virtio-net of QEMU on a TAP that is there.
    Qemu {
        /// Name of the TAP.
        tap: String,
        /// Through vhost-net.
        has_vhost: bool,
        /// Doorbells are ports: QEMU then says so first, and Linux takes what it is told first.
        has_pio_notify: bool,
        /// Last byte of the address of its hardware.
        mac: u8,
        /// Address of the guest's end.
        guest: String,
        /// Queue pairs.
        queues: u32,
    },
}

/// What alacrity runs as a guest that obeys `script`.
pub fn alacrity(images: &Images, cpus: u32, nics: &[Nic], script: &str) -> CommandLine {
    let mut line = alacrity_base(images, cpus);
    for nic in nics {
        match nic {
            Nic::Ours {
                is_venet,
                tap,
                host,
                guest,
                queues,
            } => {
                let flag = if *is_venet { "--venet" } else { "--net" };
                let queues = match queues {
                    0 | 1 => String::new(),
                    queues => format!(",queues={queues}"),
                };
                let keys = format!("tap={tap},host_ip={host}/24,guest_ip={guest}/24{queues}");
                line = line.with([flag.to_owned(), keys]);
            }
            Nic::Bus { bus, socket } => {
                line = line.with(["--bus", bus, "--host", &text(socket)]);
            }
            Nic::Qemu { .. } => {}
        }
    }
    line.with(["--exec", script])
}

fn alacrity_base(images: &Images, cpus: u32) -> CommandLine {
    CommandLine(vec![text(&images.alacrity)]).with([
        "run",
        "--kernel",
        &text(&images.kernel),
        "--initrd",
        &text(&images.initrd),
        "--cpus",
        &cpus.to_string(),
        "--memory",
        &format!("{MEMORY_MIB}M"),
    ])
}

/// What QEMU runs as a guest whose script is already in `initrd`.
pub fn qemu(images: &Images, initrd: &Path, cpus: u32, nics: &[Nic]) -> CommandLine {
    let mut words = WORDS.to_owned();
    let mut devices = CommandLine(Vec::new());
    for (idx, nic) in nics.iter().enumerate() {
        let Nic::Qemu {
            tap,
            has_vhost,
            has_pio_notify,
            mac,
            guest,
            queues,
        } = nic
        else {
            continue;
        };
        words += &format!(" alacrity.ip=eth{idx},{guest}/24");
        let vhost = if *has_vhost { "on" } else { "off" };
        let notify = match has_pio_notify {
            true => ",modern-pio-notify=on",
            false => "",
        };
        let (of_netdev, of_device) = match queues {
            0 | 1 => Default::default(),
            queues => (
                format!(",queues={queues}"),
                format!(",mq=on,vectors={}", 2 * queues + 2),
            ),
        };
        devices = devices.with([
            "-netdev".to_owned(),
            format!("tap,id=net{idx},ifname={tap},script=no,downscript=no,vhost={vhost}{of_netdev}"),
            "-device".to_owned(),
            format!(
                "virtio-net-pci,netdev=net{idx},mac=52:54:00:00:00:{mac:02x},disable-legacy=on,romfile=,\
                 rx_queue_size={QEMU_RX_QUEUE}{notify}{of_device}"
            ),
        ]);
    }
    qemu_base(images, initrd, cpus)
        .with(["-serial", "null", "-serial", "stdio", "-append", &words])
        .with(devices.0)
}

fn qemu_base(images: &Images, initrd: &Path, cpus: u32) -> CommandLine {
    CommandLine::words(&format!(
        "qemu-system-x86_64 -M q35 -accel kvm -cpu host -smp {cpus} -m {MEMORY_MIB} -nodefaults \
         -display none -no-reboot -kernel"
    ))
    .with([text(&images.kernel), "-initrd".to_owned(), text(initrd)])
}

/// What `peer` runs as a guest that says when its init begins, and powers off.
pub fn boot(peer: Peer, images: &Images) -> CommandLine {
    let words = format!("{WORDS} {BOOT_WORDS}");
    match peer {
        Peer::Kvmtool => CommandLine::words("lkvm run --name alacrity-bench -c 1 -m")
            .with([&MEMORY_MIB.to_string(), "-k"])
            .with([text(&images.kernel.with_file_name("bzImage"))])
            .with(["-i".to_owned(), text(&images.initrd)])
            .with(["--console", "serial", "-n", "mode=none", "-p", &words]),
        peer if peer.is_qemu() => {
            qemu_base(images, &images.initrd, 1).with(["-serial", "stdio", "-append", &words])
        }
        _ => alacrity_base(images, 1).with(["--cmdline", BOOT_WORDS]),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> Images {
        Images {
            alacrity: "/a/alacrity".into(),
            kernel: "/g/vmlinux".into(),
            initrd: "/g/initramfs.cpio".into(),
        }
    }

    fn qemu_nic(has_vhost: bool, queues: u32) -> Nic {
        Nic::Qemu {
            tap: "bench0".into(),
            has_vhost,
            has_pio_notify: false,
            mac: 2,
            guest: "10.0.0.2".into(),
            queues,
        }
    }

    #[test]
    fn ours_makes_its_own_tap() {
        let nic = Nic::Ours {
            is_venet: true,
            tap: "bench0".into(),
            host: "10.0.0.1".into(),
            guest: "10.0.0.2".into(),
            queues: 1,
        };
        let line = alacrity(&images(), 1, &[nic], "one\ntwo").to_string();

        assert_eq!(
            line,
            "/a/alacrity run --kernel /g/vmlinux --initrd /g/initramfs.cpio --cpus 1 --memory 512M \
             --venet tap=bench0,host_ip=10.0.0.1/24,guest_ip=10.0.0.2/24 --exec SCRIPT"
        );
    }

    #[test]
    fn qemu_is_at_its_best() {
        let line = qemu(&images(), Path::new("/w/i"), 1, &[qemu_nic(true, 1)]).to_string();

        for part in [
            "-accel kvm -cpu host -smp 1 -m 512 -nodefaults",
            "-kernel /g/vmlinux -initrd /w/i",
            "reboot=panic_warm alacrity.ip=eth0,10.0.0.2/24'",
            "ifname=bench0,script=no,downscript=no,vhost=on",
            "mac=52:54:00:00:00:02,disable-legacy=on,romfile=,rx_queue_size=512",
        ] {
            assert!(line.contains(part), "no {part} in {line}");
        }
        assert!(!line.contains("mq=on"));
    }

    #[test]
    fn doorbells_are_ports_where_asked_for() {
        let line = |has_pio_notify| {
            let mut nic = qemu_nic(true, 1);
            if let Nic::Qemu {
                has_pio_notify: has,
                ..
            } = &mut nic
            {
                *has = has_pio_notify;
            }
            qemu(&images(), Path::new("/w/i"), 1, &[nic]).to_string()
        };

        assert!(line(true).contains("rx_queue_size=512,modern-pio-notify=on"));
        assert!(!line(false).contains("pio-notify"));
    }

    #[test]
    fn queues_are_on_both_ends() {
        let line = qemu(&images(), Path::new("/w/i"), 4, &[qemu_nic(false, 4)]).to_string();

        assert!(line.contains("-smp 4"), "{line}");
        assert!(line.contains("vhost=off,queues=4"), "{line}");
        assert!(line.contains("mq=on,vectors=10"), "{line}");
    }

    #[test]
    fn all_boot_with_the_same_words() {
        for peer in [Peer::Alacrity, Peer::Qemu, Peer::Kvmtool] {
            let line = boot(peer, &images()).to_string();
            assert!(line.contains("alacrity.marker alacrity.poweroff"), "{line}");
            assert!(line.contains("/g/initramfs.cpio"), "{line}");
        }
        let kvmtool = boot(Peer::Kvmtool, &images()).to_string();
        assert!(
            kvmtool.contains("-k /g/bzImage"),
            "it takes no vmlinux: {kvmtool}"
        );
    }
}
