//! The guests of a step, and what they need on the host.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::command_line::{self, CommandLine, Images, Nic};
use super::counters::Watched;
use super::host::Link;
use super::interrupt::Interrupt;
use super::peer::Peer;
use super::process::Process;
use super::script;
use super::{GuestsError, io_error};
use crate::bench::ip::ip;
use crate::exec;

/// How long the daemon may take to start.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);
/// How long a guest may take to power off when it has said all.
const POWER_OFF: Duration = Duration::from_secs(5);
/// Silence after which a guest that starts has stood still.
pub const BOOT_SILENCE: Duration = Duration::from_secs(60);

/// Everything that runs in a step. Dropping it ends guests first, and removes their links last.
#[derive(Debug)]
pub struct Started {
    /// The guest that measures, first, and those that do the same.
    pub clients: Vec<Process>,
    /// The guest that is asked, of a pair.
    pub server: Option<Process>,
    daemon: Option<Process>,
    _links: Vec<Link>,
    /// Whether the VMMs tell of doorbells.
    is_ours: bool,
    /// What the client was started with.
    pub line: CommandLine,
}

impl Started {
    /// The processes whose counters tell about this step.
    pub fn watched(&self) -> Watched {
        let guests = self.clients.iter().chain(&self.server);
        Watched {
            vmms: guests.map(Process::pid).collect(),
            helpers: self.daemon.iter().map(Process::pid).collect(),
            is_ours: self.is_ours,
            clock: None,
        }
    }

    /// Waits for the first guest, which powers off by itself when it has said all; what does not is ended.
    ///
    /// # Errors
    /// The user ends the run.
    pub fn power_off(&mut self, interrupt: &Interrupt) -> Result<(), GuestsError> {
        if let Some(guest) = self.clients.first_mut() {
            guest.wait(POWER_OFF, interrupt)?;
        }
        Ok(())
    }
}

/// Address `last` of the subnet `idx`; the host, or the guest that is asked, is 1, the guest 2.
pub fn address(idx: u32, last: u32) -> String {
    format!("10.99.{idx}.{last}")
}

/// Starts guests.
#[derive(Debug)]
pub struct Starter {
    /// What they boot.
    pub images: Images,
    /// A directory that goes when the run ends.
    pub work: PathBuf,
    /// Ends waiting.
    pub interrupt: Interrupt,
}

impl Starter {
    /// One guest of `peer` with `num_nics` interfaces to the host, and `queues` vCPUs and queues.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn one(
        &self,
        peer: Peer,
        num_nics: u32,
        queues: u32,
        script: &str,
    ) -> Result<Started, GuestsError> {
        let mut links = Vec::new();
        let nics: Vec<_> = (0..num_nics)
            .map(|idx| self.nic(peer, idx, queues, &mut links))
            .collect::<Result<_, _>>()?;
        let line = self.line(peer, "one", queues, &nics, script)?;
        Ok(Started {
            clients: vec![Process::start(&line)?],
            server: None,
            daemon: None,
            _links: links,
            is_ours: !peer.is_qemu(),
            line,
        })
    }

    /// One guest with venet and virtio-net of ours, in the subnets 0 and 1.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn both(&self, script: &str) -> Result<Started, GuestsError> {
        let mut links = Vec::new();
        let nics = [
            self.nic(Peer::Venet, 0, 1, &mut links)?,
            self.nic(Peer::Virtio, 1, 1, &mut links)?,
        ];
        self.ours(links, &nics, script)
    }

    fn ours(&self, links: Vec<Link>, nics: &[Nic], script: &str) -> Result<Started, GuestsError> {
        let line = command_line::alacrity(&self.images, 1, nics, script);
        Ok(Started {
            clients: vec![Process::start(&line)?],
            server: None,
            daemon: None,
            _links: links,
            is_ours: true,
            line,
        })
    }

    /// One guest of ours with venet and two virtio-nets, one of them to be left without a driver.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn verbs(&self, script: &str) -> Result<Started, GuestsError> {
        let mut links = Vec::new();
        let nics = [
            self.nic(Peer::Venet, 0, 1, &mut links)?,
            self.nic(Peer::Virtio, 1, 1, &mut links)?,
            self.nic(Peer::Virtio, 2, 1, &mut links)?,
        ];
        self.ours(links, &nics, script)
    }

    /// Guests that each have an interface to the host and run the script for their subnet.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn many(
        &self,
        peer: Peer,
        num: u32,
        script: impl Fn(u32) -> String,
    ) -> Result<Started, GuestsError> {
        let mut links = Vec::new();
        let mut clients = Vec::new();
        let mut first = None;
        for idx in 0..num {
            let nic = self.nic(peer, idx, 1, &mut links)?;
            let line = self.line(peer, &format!("guest{idx}"), 1, &[nic], &script(idx))?;
            clients.push(Process::start(&line)?);
            first.get_or_insert(line);
        }
        Ok(Started {
            clients,
            server: None,
            daemon: None,
            _links: links,
            is_ours: !peer.is_qemu(),
            line: first.unwrap_or(CommandLine(Vec::new())),
        })
    }

    /// A guest that is asked, and `num` that ask it with a script for their address; `None` if the first
    /// does not get ready.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn pair(
        &self,
        peer: Peer,
        num: u32,
        server: &str,
        client: impl Fn(&str) -> String,
    ) -> Result<Option<Started>, GuestsError> {
        let mut links = Vec::new();
        let daemon = match peer.is_qemu() {
            true => {
                links.push(Link::bridge("benchbr")?);
                None
            }
            false => Some(self.daemon(num + 1)?),
        };
        let mut member = |idx: u32, name: &str, script: &str| {
            let guest = address(0, idx + 1);
            let nic = match peer.is_qemu() {
                true => {
                    let tap = format!("bench{idx}");
                    links.push(Link::tap(&tap, 1)?);
                    ip(&format!("link set {tap} master benchbr"))?;
                    Nic::Qemu {
                        tap,
                        has_vhost: peer.has_vhost(),
                        has_pio_notify: peer.has_pio_notify(),
                        mac: u8::try_from(idx + 1).unwrap_or(u8::MAX),
                        guest,
                        queues: 1,
                    }
                }
                false => Nic::Bus {
                    bus: bus_name(idx),
                    socket: self.socket(),
                },
            };
            self.line(peer, name, 1, &[nic], script)
        };
        let server = Process::start(&member(0, "server", server)?)?;
        if !self.is_ready(&server)? {
            return Ok(None);
        }
        let mut clients = Vec::new();
        let mut first = None;
        for idx in 1..=num {
            let script = client(&address(0, idx + 1));
            let line = member(idx, &format!("client{idx}"), &script)?;
            clients.push(Process::start(&line)?);
            first.get_or_insert(line);
        }
        Ok(Some(Started {
            clients,
            server: Some(server),
            daemon,
            _links: links,
            // The daemon has the doorbells, and does not tell by VM.
            is_ours: false,
            line: first.unwrap_or(CommandLine(Vec::new())),
        }))
    }

    /// Waits until a guest says that it is ready; false if it stands still.
    ///
    /// # Errors
    /// The run is to end.
    pub fn is_ready(&self, guest: &Process) -> Result<bool, GuestsError> {
        while let Some(line) = guest.next_line(BOOT_SILENCE, &self.interrupt)? {
            if script::Line::parse(&line) == script::Line::Ready {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// An interface in the subnet `idx`, and what it needs on the host.
    fn nic(
        &self,
        peer: Peer,
        idx: u32,
        queues: u32,
        links: &mut Vec<Link>,
    ) -> Result<Nic, GuestsError> {
        let tap = format!("bench{idx}");
        let (host, guest) = (address(idx, 1), address(idx, 2));
        if !peer.is_qemu() {
            return Ok(Nic::Ours {
                is_venet: peer == Peer::Venet,
                tap,
                host,
                guest,
                queues: if peer == Peer::Venet { 1 } else { queues },
            });
        }
        links.push(Link::tap(&tap, queues)?);
        ip(&format!("addr add {host}/24 dev {tap}"))?;
        Ok(Nic::Qemu {
            tap,
            has_vhost: peer.has_vhost(),
            has_pio_notify: peer.has_pio_notify(),
            mac: u8::try_from(idx + 2).unwrap_or(u8::MAX),
            guest,
            queues,
        })
    }

    fn line(
        &self,
        peer: Peer,
        name: &str,
        cpus: u32,
        nics: &[Nic],
        script: &str,
    ) -> Result<CommandLine, GuestsError> {
        Ok(match peer.is_qemu() {
            true => {
                let initrd = self.initrd(name, script)?;
                command_line::qemu(&self.images, &initrd, cpus, nics)
            }
            false => command_line::alacrity(&self.images, cpus, nics, script),
        })
    }

    /// The root file system with a script that the guest runs; alacrity does that by itself.
    fn initrd(&self, name: &str, script: &str) -> Result<PathBuf, GuestsError> {
        let path = self.work.join(format!("{name}.cpio"));
        let payload = exec::payload(script).map_err(|error| {
            io_error("pack the script of a guest")(std::io::Error::other(error))
        })?;
        append(&self.images.initrd, &payload, &path)
            .map_err(io_error("write the initrd of a guest"))?;
        Ok(path)
    }

    fn socket(&self) -> PathBuf {
        self.work.join("bus.sock")
    }

    /// A daemon with a switch that is on `num_buses` buses.
    fn daemon(&self, num_buses: u32) -> Result<Process, GuestsError> {
        let socket = self.socket();
        let program = CommandLine(vec![self.images.alacrity.to_string_lossy().into_owned()]);
        let socket_text = socket.to_string_lossy().into_owned();
        let daemon = Process::start(&program.clone().with(["host", "--socket", &socket_text]))?;
        let end = Instant::now() + DAEMON_PATIENCE;
        while !socket.exists() {
            self.interrupt.check()?;
            if Instant::now() >= end {
                return Err(GuestsError::Daemon {
                    said: daemon.complaints(),
                });
            }
            thread::sleep(Duration::from_millis(20));
        }
        let bus = |words: &str| -> Result<(), GuestsError> {
            let line = program
                .clone()
                .with(["vbus", "--socket", &socket_text])
                .with(words.split(' '));
            let mut process = Process::start(&line)?;
            match process.wait_success(DAEMON_PATIENCE, &self.interrupt)? {
                true => Ok(()),
                false => Err(GuestsError::Daemon {
                    said: process.complaints(),
                }),
            }
        };
        bus("mkdir config/devices/lan")?;
        bus("echo venet-switch config/devices/lan/type")?;
        for idx in 0..num_buses {
            let instance = format!("config/instances/{}", bus_name(idx));
            bus(&format!("mkdir {instance}"))?;
            bus(&format!("ln -s config/devices/lan {instance}"))?;
        }
        Ok(daemon)
    }
}

fn bus_name(idx: u32) -> String {
    format!("bench{idx}")
}

/// The archive `from` and `payload` one after the other, as Linux unpacks them.
fn append(from: &Path, payload: &[u8], to: &Path) -> std::io::Result<()> {
    fs::copy(from, to)?;
    let mut file = fs::OpenOptions::new().append(true).open(to)?;
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let gap = len.next_multiple_of(exec::INITRD_ALIGN) - len;
    file.write_all(&vec![0; gap])?;
    file.write_all(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_is_behind_the_root_file_system_at_a_multiple_of_four() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, b"12345").unwrap();

        append(&from, b"payload", &to).unwrap();

        assert_eq!(fs::read(to).unwrap(), b"12345\0\0\0payload");
    }
}
