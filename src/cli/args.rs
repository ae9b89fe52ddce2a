//! The command line as `clap` sees it: names, help texts, nothing else. Values stay text here and
//! get their meaning in the parent module. `build.rs` includes this file to generate the man pages
//! and shell completions, so it may use only `std` and `clap`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

const EXIT_STATUS: &str = "\
EXIT STATUS:
  0      the guest powered off or rebooted
  N      with --exec: the status of the command
  2      bad usage or input; nothing was started
  3      the guest panicked
  4      the host or KVM failed
  128+N  signal N ended the VM before the guest had powered off";

const RUN_EXAMPLES: &str = "\
EXAMPLES:
  A shell in the default guest (Ctrl-a x ends the VM):
    alacrity run

  One command; its output and its status are ours:
    alacrity run --exec 'uname -a'

  Two vCPUs, 1 GiB, a disk and a network with addresses at both ends:
    alacrity run --cpus 2 --memory 1G --disk path=data.img,serial=data \\
        --net tap=tap0,host_ip=10.9.0.1/24,guest_ip=10.9.0.2/24

  Outgoing network without root, through passt:
    alacrity run --net user

  Your own kernel:
    alacrity run --kernel bzImage --initrd initrd.img --cmdline 'root=/dev/vda'

  The same as a file (flags override it; --disk and --net add to it):
    cat > vm.toml <<'END'
    cpus = 2
    memory = \"1G\"
    [[disk]]
    path = \"data.img\"
    serial = \"data\"
    [[net]]
    tap = \"tap0\"
    host_ip = \"10.9.0.1/24\"
    END
    alacrity run --config vm.toml";

const TOP_EXAMPLES: &str = "\
EXAMPLES:
  alacrity check                      can this machine run guests?
  scripts/guest-image                 make the default guest, once
  alacrity run                        boot it
  alacrity run --exec 'cat /proc/version'
  alacrity run --help                 all about VMs";

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
    /// Read the VM from a TOML file; flags override it, --disk and --net add to it.
    #[arg(long, value_name = "FILE.toml", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
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
    /// Add a memory balloon that also reports free pages; target=SIZE takes that much at once.
    #[arg(long, value_name = "target=SIZE", num_args = 0..=1, default_missing_value = "", require_equals = true)]
    pub balloon: Option<String>,
    /// Run a shell command in the default guest, stream its output, end with its status.
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub exec: Option<String>,
    /// Write counters and the boot timeline to FILE as JSON when the VM ends.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub metrics: Option<PathBuf>,
    /// Run even where KVM interprets guest kernel mode, a thousand times slower.
    #[arg(long)]
    pub force: bool,
}

/// Flags of `alacrity check`.
#[derive(Debug, Default, Args)]
pub struct CheckArgs {
    /// Print JSON for programs.
    #[arg(long)]
    pub json: bool,
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
