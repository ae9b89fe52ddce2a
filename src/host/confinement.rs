//! What a confined daemon keeps: the files and the capabilities that it needs while it runs.

use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;
use vbus::threads::ThreadClass;

use super::state_file::StateFile;
use crate::control_socket::Place;
use crate::paths::directory_of;
use crate::sandbox::Paths;

/// Where TAPs are opened, when an administrator asks for one.
const TUN: &str = "/dev/net/tun";

/// The files of a daemon that listens on `socket` and asks the VMs that have sockets in `vms`.
pub fn paths(socket: &Path, state: Option<&StateFile>, vms: Option<&Place>) -> Paths {
    // Rules are for what is there: VMs that are yet to come make the same directory.
    let vms = vms.filter(|place| place.make().is_ok());
    Paths {
        read: [PathBuf::from("/proc")]
            .into_iter()
            .chain(vms.map(|place| place.dir().to_owned()))
            .collect(),
        write: [TUN.into(), directory_of(socket).to_owned()]
            .into_iter()
            .chain(state.map(|state| directory_of(state.path()).to_owned()))
            .collect(),
    }
}

/// The capabilities of threads of `class`.
pub fn capabilities(class: ThreadClass) -> CapabilitySet {
    match class {
        // An administrator may name a TAP at any time, by the mounted tree or the socket.
        ThreadClass::Bus | ThreadClass::Mount => CapabilitySet::NET_ADMIN,
        // The state file and the socket may be in a directory of somebody else, and no client speaks
        // to these threads.
        ThreadClass::State | ThreadClass::Daemon => {
            CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER
        }
        _ => CapabilitySet::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_socket_and_the_state_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(&dir.path().join("bus.toml")).unwrap();
        let vms = Place::new(dir.path().join("run/vms"));

        let paths = paths(Path::new("vbus.sock"), Some(&state), Some(&vms));

        let written = [Path::new(TUN), Path::new("."), dir.path()];
        assert_eq!(paths.write, written);
        assert_eq!(paths.read, [Path::new("/proc"), vms.dir()]);
        assert!(vms.dir().is_dir());
    }

    #[test]
    fn only_threads_that_serve_administrators_may_change_networks() {
        let may = |class| capabilities(class).contains(CapabilitySet::NET_ADMIN);

        let who: Vec<_> = ThreadClass::ALL.into_iter().filter(|it| may(*it)).collect();

        assert_eq!(who, [ThreadClass::Bus, ThreadClass::Mount]);
    }
}
