//! Text → [`VmConfig`]: flags of `alacrity run`, on top of a configuration file if there is one.
//! `main` calls this; nothing here starts anything.

pub mod args;
pub mod generated;
pub mod keys;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use args::bench_args::{
    BenchArgs, BenchCase, BenchCommand, GuestBench, GuestBenchArgs, InstructionsArgs, ReportArgs,
};
pub use args::{
    CheckArgs, Cli, Command, HostArgs, LogLevel, MemmapArgs, PsArgs, ReclaimArgs, RunArgs,
    SandboxMode, Shell, StatArgs, TargetArgs, VbusArgs, VbusCommand,
};
use ipnet::Ipv4Net;
use keys::{Key, Keys, KeysError};

use crate::config::{
    BalloonConfig, ConfigError, DiskConfig, NetConfig, NetError, NetTable, SwapConfig, TomlError,
    VenetConfig, VenetError, VenetTable, VmConfig,
};
use crate::mac::{MacAddr, MacError};
use crate::size::{self, SizeError};
use crate::user::{UserError, UserIds};

const DISK_KEYS: [Key; 3] = [
    Key::with_value("path", "FILE"),
    Key::alone("ro"),
    Key::with_value("serial", "TEXT"),
];

const NET_KEYS: [Key; 7] = [
    Key::with_value("tap", "NAME"),
    Key::alone("user"),
    Key::with_value("mac", "02:00:00:00:00:01"),
    Key::with_value("queues", "N"),
    Key::with_value("mtu", "N"),
    Key::with_value("host_ip", "A.B.C.D/N"),
    Key::with_value("guest_ip", "A.B.C.D/N"),
];

const VENET_KEYS: [Key; 7] = [
    Key::with_value("tap", "NAME"),
    Key::with_value("switch", "NAME"),
    Key::alone("loopback"),
    Key::with_value("mac", "02:00:00:00:00:01"),
    Key::with_value("mtu", "N"),
    Key::with_value("host_ip", "A.B.C.D/N"),
    Key::with_value("guest_ip", "A.B.C.D/N"),
];

const SWAP_KEYS: [Key; 1] = [Key::with_value("size", "SIZE")];

const BALLOON_KEYS: [Key; 1] = [Key::with_value("target", "SIZE")];

/// Why a command line is no VM.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration file cannot be read.
    #[error("cannot read configuration {} (does it exist, and may you read it?)", path.display())]
    ReadConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration file is not one.
    #[error("configuration {}", path.display())]
    ParseConfig {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: TomlError,
    },
    /// A flag has a value that it does not understand.
    #[error("{flag} {text}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What was written behind it.
        text: String,
        /// Why.
        source: ValueError,
    },
    /// Each part is understood, the whole is not a VM.
    #[error("cannot start this VM")]
    Config {
        /// Why.
        source: ConfigError,
    },
}

/// Why the value of a flag is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// As said by the list of keys.
    #[error(transparent)]
    Keys(KeysError),
    /// As said by the size.
    #[error(transparent)]
    Size(SizeError),
    /// As said by the hardware address.
    #[error(transparent)]
    Mac(MacError),
    /// As said by the interface.
    #[error(transparent)]
    Net(NetError),
    /// As said by the interface on the VM's own bus.
    #[error(transparent)]
    Venet(VenetError),
    /// As said by the numbers of a user.
    #[error(transparent)]
    User(UserError),
    /// Not a whole number in range of anything.
    #[error("`{text}` is not a whole number that fits here; write one, such as 2")]
    Number {
        /// What was written.
        text: String,
    },
    /// Not an address with prefix.
    #[error("`{text}` is not an IPv4 address with prefix; write one, such as 10.9.0.1/24")]
    Ipv4Net {
        /// What was written.
        text: String,
    },
}

impl TryFrom<RunArgs> for VmConfig {
    type Error = CliError;

    /// Reads the configuration file if one is named, lets the flags override it and validates the
    /// outcome.
    fn try_from(args: RunArgs) -> Result<Self, CliError> {
        let base = match &args.config {
            Some(path) => read_config(path)?,
            None => Self::default(),
        };
        let config = apply(args, base)?;
        config
            .validate()
            .map_err(|source| CliError::Config { source })?;
        Ok(config)
    }
}

fn read_config(path: &Path) -> Result<VmConfig, CliError> {
    let text = fs::read_to_string(path).map_err(|source| CliError::ReadConfig {
        path: path.into(),
        source,
    })?;
    VmConfig::from_toml(&text).map_err(|source| CliError::ParseConfig {
        path: path.into(),
        source,
    })
}

/// Lets the flags override `base`, and append to its disks and interfaces.
fn apply(args: RunArgs, base: VmConfig) -> Result<VmConfig, CliError> {
    let mut disks = base.disks;
    for text in &args.disks {
        disks.push(in_flag("--disk", text, parse_disk)?);
    }
    let mut nets = base.nets;
    for text in &args.nets {
        nets.push(in_flag("--net", text, parse_net)?);
    }
    let mut venets = base.venets;
    for text in &args.venets {
        venets.push(in_flag("--venet", text, parse_venet)?);
    }
    Ok(VmConfig {
        name: args.name.or(base.name),
        kernel: args.kernel.or(base.kernel),
        initrd: args.initrd.or(base.initrd),
        cmdline: args.cmdline.unwrap_or(base.cmdline),
        cpus: match &args.cpus {
            Some(text) => in_flag("--cpus", text, parse_number)?,
            None => base.cpus,
        },
        memory: match &args.memory {
            Some(text) => in_flag("--memory", text, parse_size)?,
            None => base.memory,
        },
        hugepages: args.hugepages || base.hugepages,
        disks,
        nets,
        venets,
        bus: args.bus.or(base.bus),
        host: args.host.or(base.host),
        balloon: match &args.balloon {
            Some(text) => Some(in_flag("--balloon", text, parse_balloon)?),
            None => base.balloon,
        },
        hints: args.hints || base.hints,
        swap: match &args.swap {
            Some(text) => Some(in_flag("--swap", text, parse_swap)?),
            None => base.swap,
        },
        memory_target: match &args.memory_target {
            Some(text) => Some(in_flag("--memory-target", text, parse_size)?),
            None => base.memory_target,
        },
        exec: args.exec.or(base.exec),
        metrics: args.metrics.or(base.metrics),
        force: args.force || base.force,
        sandbox: args.sandbox.map_or(base.sandbox, Into::into),
        user: match &args.user {
            Some(text) => Some(in_flag("--user", text, parse_user)?),
            None => base.user,
        },
    })
}

fn in_flag<T>(
    flag: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<T, CliError> {
    parse(text).map_err(|source| CliError::Flag {
        flag,
        text: text.into(),
        source,
    })
}

fn parse_disk(text: &str) -> Result<DiskConfig, ValueError> {
    let keys = Keys::parse(text, &DISK_KEYS).map_err(ValueError::Keys)?;
    Ok(DiskConfig {
        path: keys.value("path").unwrap_or_default().into(),
        is_read_only: keys.has("ro"),
        serial: keys.value("serial").map(str::to_owned),
    })
}

fn parse_net(text: &str) -> Result<NetConfig, ValueError> {
    let keys = Keys::parse(text, &NET_KEYS).map_err(ValueError::Keys)?;
    NetTable {
        tap: keys.value("tap").map(str::to_owned),
        user: keys.has("user"),
        mac: keys.value("mac").map(parse_mac).transpose()?,
        queues: keys.value("queues").map(parse_number).transpose()?,
        mtu: keys.value("mtu").map(parse_number).transpose()?,
        host_ip: keys.value("host_ip").map(parse_ipv4_net).transpose()?,
        guest_ip: keys.value("guest_ip").map(parse_ipv4_net).transpose()?,
    }
    .try_into()
    .map_err(ValueError::Net)
}

fn parse_venet(text: &str) -> Result<VenetConfig, ValueError> {
    let keys = Keys::parse(text, &VENET_KEYS).map_err(ValueError::Keys)?;
    VenetTable {
        tap: keys.value("tap").map(str::to_owned),
        switch: keys.value("switch").map(str::to_owned),
        loopback: keys.has("loopback"),
        mac: keys.value("mac").map(parse_mac).transpose()?,
        mtu: keys.value("mtu").map(parse_number).transpose()?,
        host_ip: keys.value("host_ip").map(parse_ipv4_net).transpose()?,
        guest_ip: keys.value("guest_ip").map(parse_ipv4_net).transpose()?,
    }
    .try_into()
    .map_err(ValueError::Venet)
}

fn parse_mac(text: &str) -> Result<MacAddr, ValueError> {
    text.parse().map_err(ValueError::Mac)
}

fn parse_user(text: &str) -> Result<UserIds, ValueError> {
    text.parse().map_err(ValueError::User)
}

fn parse_ipv4_net(text: &str) -> Result<Ipv4Net, ValueError> {
    text.parse()
        .map_err(|_| ValueError::Ipv4Net { text: text.into() })
}

fn parse_balloon(text: &str) -> Result<BalloonConfig, ValueError> {
    if text.is_empty() {
        return Ok(BalloonConfig::default());
    }
    let keys = Keys::parse(text, &BALLOON_KEYS).map_err(ValueError::Keys)?;
    Ok(BalloonConfig {
        target: parse_size(keys.value("target").unwrap_or("0"))?,
    })
}

fn parse_swap(text: &str) -> Result<SwapConfig, ValueError> {
    let (path, size) = match text.split_once(',') {
        Some((path, keys)) => {
            let keys = Keys::parse(keys, &SWAP_KEYS).map_err(ValueError::Keys)?;
            (path, parse_size(keys.value("size").unwrap_or("0"))?)
        }
        None => (text, 0),
    };
    Ok(SwapConfig {
        path: path.into(),
        size,
    })
}

fn parse_size(text: &str) -> Result<u64, ValueError> {
    size::parse(text).map_err(ValueError::Size)
}

fn parse_number<T: FromStr>(text: &str) -> Result<T, ValueError> {
    text.parse()
        .map_err(|_| ValueError::Number { text: text.into() })
}

/// Shortens what `clap` says about bad usage to two lines: what is wrong, and where help is.
pub fn usage_error(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let what = lines.next().unwrap_or("error: bad usage").to_owned();
    let more: Vec<_> = lines.collect();
    let remedy = match more.is_empty() {
        true => "`alacrity --help` and `alacrity help COMMAND` show what can be written".to_owned(),
        false => more.join(", "),
    };
    format!("{what}\n{remedy}\n")
}
