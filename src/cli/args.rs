//! The command line as `clap` sees it: names, help texts, nothing else. Values stay text here and
//! get their meaning in the parent module. `build.rs` includes this file to generate the man pages
//! and shell completions, so it may use only `std` and `clap`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

// `build.rs` includes this file from elsewhere, so the paths are from its directory.
#[path = "bench_args.rs"]
pub mod bench_args;
#[path = "help.rs"]
mod help;

use bench_args::BenchArgs;
use help::{
    EXIT_STATUS, HOST_EXAMPLES, MEMMAP_NOTES, PS_NOTES, RECLAIM_NOTES, RUN_EXAMPLES, STAT_NOTES,
    TARGET_NOTES, TOP_EXAMPLES, VBUS_EXAMPLES,
};

/// A virtual machine monitor on KVM.
#[derive(Debug, Parser)]
#[command(
    name = "alacrity",
    version,
    about,
    long_about = "Boots stock Linux guests on KVM.",
    after_long_help = format!("{TOP_EXAMPLES}\n\n{EXIT_STATUS}"),
    max_term_width = 100
)]
pub struct Cli {
    /// How much to report on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogLevel::Warn, value_name = "LEVEL", display_order = 900)]
    pub log_level: LogLevel,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a virtual machine until it powers off.
    Run(Box<RunArgs>),
    /// Say whether this machine can run guests, and what to do if not.
    #[command(after_long_help = "\
EXIT STATUS:
  0  a Linux guest can run here
  1  it cannot; the lines marked with a remedy say why
  2  bad usage")]
    Check(CheckArgs),
    /// Measure what alacrity costs on this machine: guests beside those of QEMU, and parts by themselves.
    Bench(BenchArgs),
    /// Be the host of virtual buses: serve their control tree and their clients.
    Host(HostArgs),
    /// Look at the control tree of a running `alacrity host`, and change it.
    Vbus(VbusArgs),
    /// List running VMs.
    Ps(PsArgs),
    /// Show the state and the counters of a running VM.
    Stat(StatArgs),
    /// Have a running VM give memory back to the host.
    Reclaim(ReclaimArgs),
    /// Set how much memory of the host a running VM shall take.
    Target(TargetArgs),
    /// Draw the memory of a running VM by what its pages are.
    Memmap(MemmapArgs),
    /// Print the completion script for a shell.
    #[command(after_long_help = "\
EXAMPLES:
  alacrity completions bash > ~/.local/share/bash-completion/completions/alacrity
  alacrity completions zsh > ~/.zfunc/_alacrity
  alacrity completions fish > ~/.config/fish/completions/alacrity.fish")]
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write all of them to a directory.
    #[command(after_long_help = "\
EXAMPLES:
  alacrity man | man -l -
  alacrity man ~/.local/share/man/man1")]
    Man {
        /// Where to write alacrity.1, alacrity-run.1 and so on.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// Flags of `alacrity run`.
#[derive(Debug, Default, Args)]
#[command(after_long_help = format!("{RUN_EXAMPLES}\n\n{EXIT_STATUS}"))]
pub struct RunArgs {
    /// Read the VM from a TOML file; flags override it, --disk, --net and --venet add to it.
    #[arg(long, value_name = "FILE.toml", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Call the VM NAME in `alacrity ps`, `stat` and `reclaim`; they also take its process number.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub name: Option<String>,
    /// Kernel to boot: bzImage or ELF vmlinux. Without it, the default guest image.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk. With neither --kernel nor --initrd, that of the default guest image.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
    /// Append to the kernel command line.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Virtual CPUs, 1 to 32 [default: 1].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<String>,
    /// Guest memory, 64M to 64G in steps of 2M [default: 512M].
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Back guest memory with 2 MiB huge pages of the host's pool.
    #[arg(long)]
    pub hugepages: bool,
    /// Add a disk from a raw image or block device; keys ro and serial=TEXT may follow.
    ///
    /// path=FILE    the image or device; a name with a comma goes into --config
    /// ro           the guest may only read
    /// serial=TEXT  what the guest sees in /sys/block/vdX/serial, up to 20 characters
    #[arg(long = "disk", value_name = "path=FILE,...", verbatim_doc_comment)]
    pub disks: Vec<String>,
    /// Add a network interface; keys mac, queues, mtu, host_ip and guest_ip may follow.
    ///
    /// tap=NAME              a TAP interface; made if missing (and then removed at the end)
    /// user                  outgoing connections without root, through passt
    /// mac=02:..             address of the guest's end; derived from the TAP's name without it
    /// queues=N              queue pairs, 1 to 8, one per vCPU at best
    /// mtu=N                 68 to 65535
    /// host_ip=10.9.0.1/24   address to give the host's end
    /// guest_ip=10.9.0.2/24  address that the default guest gives its end
    #[arg(long = "net", value_name = "tap=NAME|user,...", verbatim_doc_comment)]
    pub nets: Vec<String>,
    /// Add a network interface on the VM's own bus; keys mac, mtu, host_ip and guest_ip may follow.
    ///
    /// tap=NAME              a TAP interface; made if missing (and then removed at the end)
    /// switch=NAME           a switch of this VM: its interfaces with the same NAME are on it
    /// loopback              what the guest sends comes back
    /// mac, mtu, host_ip and guest_ip as for --net. Such an interface needs a guest with the
    /// drivers of the bus, which the default guest has. For a switch that several VMs share, see
    /// --bus.
    #[arg(
        long = "venet",
        value_name = "tap=NAME|switch=NAME|loopback,...",
        verbatim_doc_comment
    )]
    pub venets: Vec<String>,
    /// Join the bus NAME of a running `alacrity host`: the guest finds what is on it, also what
    /// comes later. Excludes --venet, which is a bus of the VM's own.
    #[arg(long, value_name = "NAME")]
    pub bus: Option<String>,
    /// The daemon's socket for --bus [default: as for `alacrity host`].
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub host: Option<PathBuf>,
    /// Add a memory balloon that also reports free pages; target=SIZE takes that much at once.
    #[arg(long, value_name = "target=SIZE", num_args = 0..=1, default_missing_value = "", require_equals = true)]
    pub balloon: Option<String>,
    /// Let the host take back memory whose bytes can be had again: pages of zeros, and copies of
    /// what is on the guest's disks. `alacrity reclaim` takes it. The guest finds its memory as it
    /// left it, only slower. Needs userfaultfd (`alacrity check`), and excludes --hugepages
    /// and --balloon.
    #[arg(long)]
    pub hints: bool,
    /// As --hints, and the rest of memory may go to a swap file: one without a name in the
    /// directory PATH (or beside the file PATH), of up to SIZE [default: --memory]. Choose a
    /// directory on a disk, not on a tmpfs.
    #[arg(long, value_name = "PATH[,size=SIZE]", value_hint = ValueHint::AnyPath)]
    pub swap: Option<String>,
    /// Take memory back by itself until the guest takes no more than SIZE of the host, and keep it so:
    /// slower and slower while the guest needs what was taken. With --hints or --swap; `alacrity
    /// target` changes it.
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_target: Option<String>,
    /// Run a shell command in the default guest, stream its output, end with its status.
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub exec: Option<String>,
    /// Write counters and the boot timeline to FILE as JSON when the VM ends.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub metrics: Option<PathBuf>,
    /// Run even where KVM interprets guest kernel mode, a thousand times slower.
    #[arg(long)]
    pub force: bool,
    /// Confine each thread to the system calls and files that it needs, and give up privileges, before
    /// the guest runs [default: on].
    #[arg(long, value_enum, value_name = "MODE")]
    pub sandbox: Option<SandboxMode>,
    /// Become this user and group, by their numbers, once all that the VM names is open: kernel, disks,
    /// TAPs, /dev/kvm, --metrics. For root. Excludes --bus.
    #[arg(long, value_name = "UID:GID", allow_hyphen_values = true)]
    pub user: Option<String>,
}

/// What happens to what a sandbox forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// There is no sandbox.
    Off,
    /// It is done, and noted in the kernel's log (`dmesg`, or that of auditd); files and privileges stay.
    Log,
    /// The program ends with a message and status 4.
    On,
}

/// Flags of `alacrity check`.
#[derive(Debug, Default, Args)]
pub struct CheckArgs {
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `alacrity host`.
#[derive(Debug, Default, Args)]
#[command(after_long_help = HOST_EXAMPLES)]
pub struct HostArgs {
    /// Mount the control tree on DIR, which is empty or not there yet.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mount: Option<PathBuf>,
    /// Listen here [default: /run/alacrity/vbus.sock, without root $XDG_RUNTIME_DIR/alacrity/vbus.sock].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Restore buses, devices and attributes from FILE, and keep it up to date.
    #[arg(long, value_name = "FILE.toml", value_hint = ValueHint::FilePath)]
    pub state: Option<PathBuf>,
    /// Let other users read the mounted tree; only its owner and root may change it.
    #[arg(long, requires = "mount")]
    pub allow_other: bool,
    /// Confine each thread to the system calls and files that it needs, and give up privileges but that
    /// for TAPs, before anybody is served [default: on].
    #[arg(long, value_enum, value_name = "MODE")]
    pub sandbox: Option<SandboxMode>,
}

/// Flags of `alacrity vbus`.
#[derive(Debug, Args)]
#[command(after_long_help = VBUS_EXAMPLES)]
pub struct VbusArgs {
    /// The daemon's socket [default: as for `alacrity host`].
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: VbusCommand,
}

/// What to do with the control tree.
#[derive(Debug, Subcommand)]
pub enum VbusCommand {
    /// List directories.
    Ls {
        /// With mode, size, time of change, and where links lead.
        #[arg(short)]
        long: bool,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
        /// What to list [default: the root].
        #[arg(value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Draw a directory and all below it.
    Tree {
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
        /// What to draw [default: the root].
        path: Option<String>,
    },
    /// Print the values of files.
    Cat {
        /// The files.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Write a value to a file.
    Echo {
        /// The value.
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// The file.
        path: String,
    },
    /// Make directories: buses below config/instances, devices below config/devices.
    Mkdir {
        /// The directories.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Remove directories: buses and devices.
    Rmdir {
        /// The directories.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Make a link, which puts a device on a bus.
    Ln {
        /// All links are symbolic; this changes nothing.
        #[arg(short)]
        symbolic: bool,
        /// Where it leads.
        target: String,
        /// The link, or the directory that it goes to under the name of its target.
        path: String,
    },
    /// Remove links, which takes devices off their bus.
    Rm {
        /// The links.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Tell of nodes what `ls -l` tells, also of directories.
    Stat {
        /// Print JSON for programs, one line for each node.
        #[arg(long)]
        json: bool,
        /// The nodes.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
}

/// Flags of `alacrity ps`.
#[derive(Debug, Default, Args)]
#[command(after_long_help = PS_NOTES)]
pub struct PsArgs {
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `alacrity stat`.
#[derive(Debug, Default, Args)]
#[command(after_long_help = STAT_NOTES)]
pub struct StatArgs {
    /// Name or process number [default: the only VM].
    pub vm: Option<String>,
    /// Print JSON for programs, one line each time.
    #[arg(long)]
    pub json: bool,
    /// Show it again every so many seconds until the VM ends [default: 1].
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", require_equals = true, value_parser = clap::value_parser!(u16).range(1..))]
    pub watch: Option<u16>,
}

/// Flags of `alacrity reclaim`.
#[derive(Debug, Args)]
#[command(after_long_help = RECLAIM_NOTES, allow_missing_positional = true)]
pub struct ReclaimArgs {
    /// Name or process number [default: the only VM].
    pub vm: Option<String>,
    /// How much, such as 512M.
    #[arg(allow_negative_numbers = true)]
    pub size: String,
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `alacrity target`.
#[derive(Debug, Args)]
#[command(after_long_help = TARGET_NOTES, allow_missing_positional = true)]
pub struct TargetArgs {
    /// Name or process number [default: the only VM].
    pub vm: Option<String>,
    /// How much, such as 512M, or `none`.
    #[arg(allow_negative_numbers = true)]
    pub size: String,
}

/// Flags of `alacrity memmap`.
#[derive(Debug, Default, Args)]
#[command(after_long_help = MEMMAP_NOTES)]
pub struct MemmapArgs {
    /// Name or process number [default: the only VM].
    pub vm: Option<String>,
    /// Draw it into this SVG file, instead of the terminal.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print JSON for programs.
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Draw it again every so many seconds until the VM ends [default: 1].
    #[arg(long, conflicts_with = "output", value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", require_equals = true, value_parser = clap::value_parser!(u16).range(1..))]
    pub watch: Option<u16>,
}

/// A shell with completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
}

/// How much to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// Also what is odd but handled.
    Warn,
    /// Also rare changes of state.
    Info,
    /// Also every request.
    Debug,
    /// Also every descriptor.
    Trace,
}
