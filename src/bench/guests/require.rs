//! What has to be there before anything starts.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::peer::Peer;
use crate::check;

/// First bytes of an archive that is not compressed.
const CPIO: &[u8] = b"07070";

/// What is looked at. A trait, so that refusals can be tested.
pub trait Host {
    /// Whether we are root.
    fn is_root(&self) -> bool;
    /// Whether Linux guests can run.
    fn can_run_guests(&self) -> bool;
    /// Whether a program is in `PATH`.
    fn has_program(&self, name: &str) -> bool;
    /// Whether a file is there.
    fn has_file(&self, path: &Path) -> bool;
    /// Whether the root file system `initrd` has a file `name`; also if that cannot be told.
    fn has_in_image(&self, initrd: &Path, name: &str) -> bool;
}

/// This host.
#[derive(Debug)]
pub struct ThisHost;

impl Host for ThisHost {
    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn can_run_guests(&self) -> bool {
        check::report().can_run_linux
    }

    fn has_program(&self, name: &str) -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|dir| dir.join(name).is_file())
    }

    fn has_file(&self, path: &Path) -> bool {
        path.exists()
    }

    fn has_in_image(&self, initrd: &Path, name: &str) -> bool {
        match fs::read(initrd) {
            Ok(bytes) if bytes.starts_with(CPIO) => holds_path(&bytes, name),
            // Compressed, or not to be read: the guest will say what it lacks.
            _ => true,
        }
    }
}

/// Whether a path that ends with `name` is in the archive: there it has a zero behind it.
fn holds_path(archive: &[u8], name: &str) -> bool {
    let path = format!("/{name}\0");
    archive
        .windows(path.len())
        .any(|window| window == path.as_bytes())
}

/// What a run needs.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// What ours is compared with.
    pub peers: Vec<Peer>,
    /// TAPs, or only boots.
    pub has_network: bool,
    /// Programs that send and receive.
    pub has_traffic: bool,
    /// A module of the guest.
    pub module: Option<&'static str>,
    /// The kernel of all guests.
    pub kernel: PathBuf,
    /// Their root file system.
    pub initrd: PathBuf,
    /// `traffic` for the host's end.
    pub traffic: PathBuf,
}

/// Everything that is missing, each with its remedy; cheap questions first.
pub fn missing(needs: &Needs, host: &dyn Host) -> Vec<String> {
    let mut missing = Vec::new();
    let mut tell = |is_there: bool, what: String| {
        if !is_there {
            missing.push(what);
        }
    };
    tell(
        host.is_root(),
        "guests with networks, and KVM's counters, need root; run this with sudo".into(),
    );
    for path in [&needs.kernel, &needs.initrd] {
        let what = format!(
            "there is no {}; scripts/guest-image makes the guest image, or name files with --kernel and --initrd",
            path.display()
        );
        tell(host.has_file(path), what);
    }
    let needs_qemu = needs.peers.iter().any(|peer| peer.is_qemu());
    tell(
        !needs_qemu || host.has_program("qemu-system-x86_64"),
        "qemu-system-x86_64 is not installed; apt-get install qemu-system-x86, or leave QEMU out of --peers".into(),
    );
    tell(
        !needs.peers.contains(&Peer::Kvmtool) || host.has_program("lkvm"),
        "lkvm is not installed; build kvmtool and put lkvm into PATH, or leave kvmtool out of --peers".into(),
    );
    tell(
        !needs.peers.iter().any(|peer| peer.has_vhost())
            || host.has_file(Path::new("/dev/vhost-net")),
        "there is no /dev/vhost-net; modprobe vhost_net, or leave qemu-vhost, qemu-vhost-pio and bridge out of --peers".into(),
    );
    tell(
        host.has_program("setpriv"),
        "setpriv is not installed; apt-get install util-linux".into(),
    );
    if needs.has_network {
        tell(
            host.has_program("ip"),
            "ip is not installed; apt-get install iproute2".into(),
        );
        tell(
            host.has_file(Path::new("/dev/net/tun")),
            "there is no /dev/net/tun; modprobe tun".into(),
        );
    }
    if needs.has_traffic {
        tell(
            host.has_program("iperf3"),
            "iperf3 is not installed; apt-get install iperf3".into(),
        );
        tell(
            host.has_file(&needs.traffic),
            format!(
                "there is no {}; scripts/guest-image makes it",
                needs.traffic.display()
            ),
        );
    }
    if let Some(module) = needs.module.filter(|_| host.has_file(&needs.initrd)) {
        tell(
            host.has_in_image(&needs.initrd, module),
            format!(
                "there is no {module} in {}; scripts/guest-image makes an image with it, or leave verbs out",
                needs.initrd.display()
            ),
        );
    }
    // It takes a moment, so not in vain.
    if missing.is_empty() && !host.can_run_guests() {
        missing.push(
            "Linux guests cannot run on this machine, `alacrity check` says why; \
             scripts/lab -- alacrity bench ... runs it in the lab"
                .into(),
        );
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that lacks what is listed.
    struct Lacks(&'static [&'static str]);

    impl Host for Lacks {
        fn is_root(&self) -> bool {
            !self.0.contains(&"root")
        }
        fn can_run_guests(&self) -> bool {
            !self.0.contains(&"kvm")
        }
        fn has_program(&self, name: &str) -> bool {
            !self.0.contains(&name)
        }
        fn has_file(&self, path: &Path) -> bool {
            !self.0.iter().any(|lacked| Path::new(lacked) == path)
        }
        fn has_in_image(&self, _initrd: &Path, name: &str) -> bool {
            !self.0.contains(&name)
        }
    }

    fn needs(peers: &[Peer]) -> Needs {
        Needs {
            peers: peers.to_vec(),
            has_network: true,
            has_traffic: true,
            module: Some("verbs.ko"),
            kernel: "/g/vmlinux".into(),
            initrd: "/g/initramfs.cpio".into(),
            traffic: "/g/traffic".into(),
        }
    }

    #[track_caller]
    fn assert_refused(peers: &[Peer], lacks: &'static [&'static str], parts: &[&str]) {
        let said = missing(&needs(peers), &Lacks(lacks)).join("\n");
        for part in parts {
            assert!(said.contains(part), "no {part} in: {said}");
        }
        assert_eq!(said.lines().count(), lacks.len(), "{said}");
    }

    #[test]
    fn host_with_everything_is_fine() {
        assert_refused(&Peer::CHOICES, &[], &[]);
    }

    #[test]
    fn each_thing_that_is_missing_is_named_with_its_remedy() {
        let all = &Peer::CHOICES;
        assert_refused(all, &["root"], &["sudo"]);
        assert_refused(all, &["kvm"], &["alacrity check", "scripts/lab"]);
        assert_refused(
            all,
            &["qemu-system-x86_64"],
            &["apt-get install qemu-system-x86"],
        );
        assert_refused(all, &["/dev/vhost-net"], &["modprobe vhost_net"]);
        assert_refused(all, &["lkvm"], &["kvmtool", "--peers"]);
        assert_refused(all, &["iperf3"], &["apt-get install iperf3"]);
        assert_refused(all, &["ip"], &["iproute2"]);
        assert_refused(all, &["/dev/net/tun"], &["modprobe tun"]);
        assert_refused(all, &["/g/vmlinux"], &["/g/vmlinux", "scripts/guest-image"]);
        assert_refused(all, &["/g/traffic"], &["/g/traffic", "scripts/guest-image"]);
        assert_refused(all, &["setpriv"], &["util-linux"]);
        assert_refused(
            all,
            &["verbs.ko"],
            &["/g/initramfs.cpio", "scripts/guest-image"],
        );
        assert_refused(all, &["root", "iperf3"], &["sudo", "iperf3"]);
    }

    #[test]
    fn files_of_an_image_are_known_unless_it_is_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let has = |bytes: &[u8], name| {
            fs::write(&image, bytes).unwrap();
            ThisHost.has_in_image(&image, name)
        };

        let archive = b"070701...lib/modules/6.12/one.ko\0...two.ko.xz\0";
        assert!(has(archive, "one.ko"));
        assert!(!has(archive, "ne.ko"));
        assert!(!has(archive, "two.ko"));
        assert!(has(b"\x1f\x8b", "two.ko"));
    }

    #[test]
    fn what_is_not_measured_is_not_needed() {
        let lacks = Lacks(&["qemu-system-x86_64", "/dev/vhost-net", "lkvm"]);
        assert_eq!(missing(&needs(&[Peer::Virtio]), &lacks), [""; 0]);
        let boots = Needs {
            has_network: false,
            has_traffic: false,
            module: None,
            ..needs(&[])
        };
        assert_eq!(
            missing(&boots, &Lacks(&["iperf3", "ip", "/g/traffic"])),
            [""; 0]
        );
    }
}
