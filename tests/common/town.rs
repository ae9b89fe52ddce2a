//! A daemon with guests of its buses, and what they are told to do.

use super::daemon::{Daemon, Session, Site};
use super::guest::{Running, Vm};
use super::host::Host;

/// Pings with sizes from the least to nearly the most that IPv4 can have.
pub fn pings(target: &str) -> String {
    format!(
        "for size in 56 1400 1473 9000 65000; do ping -q -c 2 -s $size {target} || exit 9; done"
    )
}

/// A daemon with guests of its buses.
pub struct Town {
    pub site: Site,
    pub daemon: Option<Daemon>,
    /// Last: it looks whether all is gone.
    pub host: Host,
}

impl Town {
    /// A daemon, which keeps its state, on which `script` ran; `vbus` is `alacrity vbus` there.
    pub fn new(script: &str) -> Option<Self> {
        let host = Host::ready_for_root()?;
        let mut town = Town {
            site: Site::new(),
            daemon: None,
            host,
        };
        town.start_daemon(script);
        Some(town)
    }

    /// `blue` and `green` are buses with a port of one switch each.
    pub fn with_switch() -> Option<Self> {
        Self::new(SWITCH)
    }

    pub fn start_daemon(&mut self, script: &str) {
        let state = self.site.path("state.toml");
        let state = state.to_str().unwrap();
        self.daemon = Some(self.site.daemon(&["--state", state]));
        self.vbus(script);
    }

    #[track_caller]
    pub fn vbus(&self, script: &str) -> String {
        let script = format!("set -e\n{script}");
        Session::run(&script, &self.site.path(""), &self.site.socket()).ok()
    }

    /// A guest of `bus` at its shell.
    #[track_caller]
    pub fn guest(&self, bus: &str) -> Running {
        let socket = self.site.socket();
        let flags = ["--bus", bus, "--host", socket.to_str().unwrap()];
        let vm = Vm::new(&self.host, &flags).start();
        vm.wait_for_shell();
        vm
    }

    /// Pids of the members of `bus`.
    pub fn members(&self, bus: &str) -> String {
        self.vbus(&format!("vbus ls sys/instances/{bus}/members"))
    }
}

pub const SWITCH: &str = "\
    vbus mkdir config/devices/lan config/instances/blue config/instances/green
    vbus echo venet-switch config/devices/lan/type
    vbus ln -s config/devices/lan config/instances/blue
    vbus ln -s config/devices/lan config/instances/green";

/// Waits for the interface `dev` in the guest and gives it `address`.
pub fn configure(dev: &str, address: &str) -> String {
    format!(
        "{}; ip addr add {address} dev {dev}; ip link set {dev} up",
        wait_for(&format!("[ -e /sys/class/net/{dev} ]"))
    )
}

/// Waits in the guest until `condition`.
pub fn wait_for(condition: &str) -> String {
    format!("n=0; until {condition}; do usleep 50000; n=$((n+1)); [ $n -lt 600 ] || break; done")
}

/// Until a ping is answered, since a link takes a moment to come up; then as a test.
pub fn wait_for_ping(target: &str) -> String {
    wait_for(&format!("ping -q -c 1 -W 1 {target} >/dev/null"))
}
