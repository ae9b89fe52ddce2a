//! The command line as `clap` sees it: names, help texts, nothing else. Values stay text here and
//! get their meaning in the parent module. `build.rs` includes this file to generate the man pages
//! and shell completions, so it may use only `std` and `clap`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint, value_parser};

// `build.rs` includes this file from elsewhere, so the path is from its directory.
#[path = "bench_args.rs"]
mod bench_args;

pub use bench_args::{GuestBench, GuestBenchArgs};

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

  The same through the virtual bus, in one line:
    alacrity run --venet tap=vnet0,host_ip=10.9.0.1/24,guest_ip=10.9.0.2/24 \\
        --exec 'ping -c3 10.9.0.1'

  Two VMs on a switch of the daemon (each on a bus of its own; `alacrity host --help`):
    alacrity run --bus blue &
    alacrity run --bus green

  Memory that can be taken back while the VM runs:
    alacrity run --hints --disk path=data.img --swap /var/tmp,size=1G

  The same, and no more than 256 MiB of it are in memory:
    alacrity run --memory 1G --swap /var/tmp --memory-target 256M

  Your own kernel:
    alacrity run --kernel bzImage --initrd initrd.img --cmdline 'root=/dev/vda'

  The same as a file (flags override it; --disk, --net and --venet add to it):
    cat > vm.toml <<'END'
    cpus = 2
    memory = \"1G\"
    [[disk]]
    path = \"data.img\"
    serial = \"data\"
    [[net]]
    tap = \"tap0\"
    host_ip = \"10.9.0.1/24\"
    [[venet]]
    loopback = true
    END
    alacrity run --config vm.toml";

const HOST_EXAMPLES: &str = "\
EXAMPLES:
  A bus with one device, through files (as root; others need fusermount3):
    alacrity host --mount /run/alacrity/vbus &
    cd /run/alacrity/vbus
    mkdir config/instances/bus0 config/devices/eth0
    echo venet-tap > config/devices/eth0/type
    ln -s ../../devices/eth0 config/instances/bus0/eth0

  The same without a mount, and kept for the next time:
    alacrity host --state bus.toml &
    alacrity vbus mkdir config/instances/bus0 config/devices/eth0
    alacrity vbus echo venet-tap config/devices/eth0/type
    alacrity vbus ln -s config/devices/eth0 config/instances/bus0/eth0

  A switch for the guests of two buses, `alacrity run --bus blue` and `--bus green`:
    alacrity vbus mkdir config/devices/lan config/instances/blue config/instances/green
    alacrity vbus echo venet-switch config/devices/lan/type
    alacrity vbus ln -s config/devices/lan config/instances/blue
    alacrity vbus ln -s config/devices/lan config/instances/green

EXIT STATUS:
  0  it was ended by Ctrl-C, SIGTERM, SIGHUP or SIGQUIT
  2  bad usage or input, or such a daemon runs already; nothing was started
  4  the host failed";

const VBUS_EXAMPLES: &str = "\
EXAMPLES:
  alacrity vbus tree
  alacrity vbus mkdir config/devices/eth0
  alacrity vbus echo venet-tap config/devices/eth0/type
  alacrity vbus ln -s config/devices/eth0 config/instances/bus0/eth0
  alacrity vbus cat sys/instances/bus0/devices/0/type
  alacrity vbus rm config/instances/bus0/eth0
  alacrity vbus rmdir config/devices/eth0

Paths begin at the root of the tree, with or without a slash. The target of a link
begins there too, unless it begins with `..`: then it is relative to the link.

EXIT STATUS:
  0  done
  1  at least one operation failed; standard error says why
  2  bad usage, or no daemon answers";

const PS_NOTES: &str = "\
Lists the VMs of this user, those of `sudo alacrity run` only as root. One that does
not answer within 5 seconds is shown as silent: its process may be stopped.

EXAMPLES:
  alacrity ps
  alacrity ps --json | jq '.[].resident_bytes'

EXIT STATUS:
  0  listed, also if no VM runs
  2  bad usage, or there is no place where VMs could be";

const STAT_NOTES: &str = "\
VM is a name (`alacrity run --name`) or the number of a process. It may be left out
if exactly one VM of this user runs. The counters are those of `alacrity run --metrics`;
with --json all of them are there, else those that are not 0.

EXAMPLES:
  alacrity stat
  alacrity stat web --watch=5
  alacrity stat 4711 --json | jq .metrics.reclaim

EXIT STATUS:
  0  shown; with --watch, the VM has ended
  2  bad usage, or no such VM
  4  the VM does not answer, or standard output cannot be written";

const RECLAIM_NOTES: &str = "\
Takes memory that is cheapest to bring back first: what the guest releases as free, then
what is zeros or also on a disk of the guest, which is dropped, and only then the rest,
which is swapped out if the VM has --swap. The guest notices nothing but the time that it
takes to get a page back. Ctrl-C ends it; what was taken until then stays taken.

VM is a name (`alacrity run --name`) or the number of a process. It may be left out
if exactly one VM of this user runs.

EXAMPLES:
  alacrity run --name web --hints --disk path=data.img --swap /var/tmp,size=1G &
  alacrity reclaim web 128M
  alacrity reclaim 64M                    there is only one VM

EXIT STATUS:
  0  as much as wanted, or more, was taken
  1  less was taken, or another reclaim of that VM is under way
  2  bad usage, no such VM, or it runs without --hints and --swap
  4  the VM does not answer, or cannot do it";

const TARGET_NOTES: &str = "\
From now on the VM gives memory back by itself until it takes no more than SIZE of the host,
as `alacrity reclaim` would, but only so fast that the guest gets on: it takes less and less
at a time while the guest needs what was taken. `none` ends that; nothing that was taken comes
back before it is used. `alacrity stat` shows the target, and what is done for it.

VM is a name (`alacrity run --name`) or the number of a process. It may be left out
if exactly one VM of this user runs.

EXAMPLES:
  alacrity target web 256M
  alacrity target none                    there is only one VM

EXIT STATUS:
  0  set
  2  bad usage, no such VM, or it runs without --hints and --swap
  4  the VM does not answer";

const MEMMAP_NOTES: &str = "\
Each cell is some pages of guest RAM, from low addresses to high ones, in the mean colour
of what they are:

  absent     take no memory: zeros, or never touched
  in memory  the only copy; volatile: a disk had the same when they were transferred, or
             the guest says so; unused: the guest says so; pinned: a transfer is under way
  dropped    on the guest's disk, and read from there when they are used
  swapped    in the swap file

Where standard output is no terminal, or NO_COLOR is set, only the sums are printed.
The VM needs --hints or --swap. VM is a name (`alacrity run --name`) or the number of a
process. It may be left out if exactly one VM of this user runs.

EXAMPLES:
  alacrity memmap
  alacrity memmap web -o map.svg
  alacrity memmap web --watch=2
  alacrity memmap web --json | jq '.cells | length'

EXIT STATUS:
  0  drawn; with --watch, the VM has ended
  2  bad usage, no such VM, or it runs without --hints and --swap
  4  the VM does not answer, or the file cannot be written";

const INSTRUCTIONS_NOTES: &str = "\
Counts what is executed by programs and kernels, of the host and of its guests, whoever it is for. So
what waits costs nothing, and what else runs costs as well. It says how often guests were entered, too.
Counts of the same work repeat where times do not; docs/benchmarks.md says how far.

Only the lab counts; there is no count on hardware.

EXAMPLES:
  scripts/lab --instructions -- alacrity bench instructions --rounds 10 -- ls -l
  alacrity bench instructions --per 1000 -- ping -q -f -c 1000 192.168.99.2

EXIT STATUS:
  0  counted
  2  bad usage, or COMMAND cannot be run
  4  nobody counts here, or COMMAND failed";

const REPORT_NOTES: &str = "\
Measures nothing. Reads those of these files that are in --from:

  net.json, boot.json,    alacrity bench net, boot, memory, verbs (scripts/bench runs all of them)
  memory.json, verbs.json
  reclaim.json,           scripts/bench-reclaim; the second one is memory of guests over time
  guests.tsv
  ring.json, call.json,   alacrity bench ring --json target/bench/ring.json, and so on
  frames.json
  pages.json              alacrity bench reclaim --json target/bench/pages.json
  notes.tsv,              what was noted about peers and machine: names and texts, with a tab
  net-notes.tsv           between

The ratio is the peer's cost by ours, or our rate by the peer's: above 1 ours is better. It is the
median of the rounds, with its quartiles; of up to four rounds these are the least and the greatest.

  won, lost  the difference is beyond the noise
  tied       the quartiles of the ratio have 1 between them, or the ratio is within the noise:
             that of ours beside itself (`-again`) in the same case and metric, else half of the
             spread of either side, together. So is a single round without a control, which tells
             nothing about noise.

A goal is reached if the median reaches it; it changes no verdict and no status.

Writes report.html, results.json, and ratios.svg: few ratios of everything with their goals, for a
README (not without any).

--compare looks at ratios, as values of two runs do not compare, and at values only where ours has
no peer. A change counts if the quartiles of both runs have nothing in common and the medians differ
by more than the noise of either.

EXAMPLES:
  What the last run of scripts/bench says:
    alacrity bench report
    xdg-open target/bench/report.html

  Did a change of mine help?
    scripts/bench
    cp target/bench/results.json before.json
    scripts/bench --compare before.json     ends with the same as
    alacrity bench report --compare before.json

  What was lost, for a program:
    alacrity bench report --json | jq '.outcomes[] | select(.verdict == \"lost\")'

EXIT STATUS:
  0  written; with --compare, nothing became worse
  1  something became worse
  2  bad usage, or raw values or OLD.json cannot be read; nothing was written
  4  the report cannot be written";

const TOP_EXAMPLES: &str = "\
EXAMPLES:
  alacrity check                      can this machine run guests?
  scripts/guest-image                 make the default guest, once
  alacrity run                        boot it
  alacrity run --exec 'cat /proc/version'
  alacrity run --help                 all about VMs
  alacrity ps                         the VMs that run
  alacrity host --mount /run/alacrity/vbus    a virtual bus, as files
  alacrity vbus tree                  the same without a mount";

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

/// Flags of `alacrity bench`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Without guests, both ends run on a CPU of their own, with nothing emulated. Ours and theirs alternate (A B B A), the
table has medians, the ratio says how many times better ours is, with its quartiles. What does not
reach its goal is marked LOST. Controls measure a subject beside itself: as far as they are from 1,
the other ratios are noise. Only ratios of one run mean anything; keep the machine idle.

ring: \"reclaim each\" is a driver that looks for what came back after each batch, \"reclaim full\" one
that does so only without room. Batches of one are in lockstep and suffer most from other load.

EXAMPLES:
  alacrity bench ring                     some ten seconds
  alacrity bench ring --quick             is it working?
  alacrity bench ring --json ring.json    raw values of every round
  alacrity bench reclaim --draw guests.tsv
  sudo alacrity bench all                 guests beside those of QEMU; see its --help
  alacrity bench report                   what all benchmarks say, as a page
  alacrity bench instructions -- ls       what a command costs, in scripts/lab --instructions

EXIT STATUS:
  0  measured, whatever the result
  2  bad usage
  4  it could not be measured")]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub struct BenchArgs {
    /// What to measure with guests, or the report.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// What to measure without guests.
    #[arg(value_enum, required = true)]
    pub case: Option<BenchCase>,
    /// Write the raw values of every round to FILE as JSON.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    /// Measure for a second or two; the values mean little.
    #[arg(long)]
    pub quick: bool,
    /// Instead of measuring, draw FILE.tsv, where scripts/bench-reclaim noted the memory of guests over
    /// time, as FILE.svg.
    #[arg(long, value_name = "FILE.tsv", value_hint = ValueHint::FilePath, conflicts_with_all = ["json", "quick"])]
    pub draw: Option<PathBuf>,
}

/// What `alacrity bench` does besides measuring parts.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure networks of guests beside those of QEMU.
    Net(GuestBenchArgs),
    /// Measure how long guests take to start, beside QEMU and kvmtool.
    Boot(GuestBenchArgs),
    /// Measure how much memory a VMM needs for itself, beside QEMU.
    Memory(GuestBenchArgs),
    /// Measure what a call and a doorbell of the virtual bus cost in a guest, beside those of virtio.
    Verbs(GuestBenchArgs),
    /// Measure all that needs guests: boot, memory, verbs and net.
    All(GuestBenchArgs),
    /// Make one page of what the benchmarks measured, and say what became better or worse.
    Report(ReportArgs),
    /// Count the instructions that everybody executes while COMMAND runs, in `scripts/lab --instructions`.
    Instructions(InstructionsArgs),
}

/// Flags of `alacrity bench instructions`.
#[derive(Debug, Args)]
#[command(after_long_help = INSTRUCTIONS_NOTES)]
pub struct InstructionsArgs {
    /// Run COMMAND so many times, and print the median, the least and the most.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Divide by N: how many packets, bytes or requests COMMAND stands for.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
    pub per: u64,
    /// Write the counts of every round to FILE as JSON.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    /// What to run; its output goes to standard error.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<String>,
}

impl BenchCommand {
    /// What to measure with guests, if that is what it does.
    pub fn guests(&self) -> Option<(GuestBench, &GuestBenchArgs)> {
        match self {
            Self::Net(args) => Some((GuestBench::Net, args)),
            Self::Boot(args) => Some((GuestBench::Boot, args)),
            Self::Memory(args) => Some((GuestBench::Memory, args)),
            Self::Verbs(args) => Some((GuestBench::Verbs, args)),
            Self::All(args) => Some((GuestBench::All, args)),
            Self::Report(_) | Self::Instructions(_) => None,
        }
    }
}

/// Flags of `alacrity bench report`.
#[derive(Debug, Args)]
#[command(after_long_help = REPORT_NOTES)]
pub struct ReportArgs {
    /// Read the raw values in DIR.
    #[arg(long, value_name = "DIR", default_value = "target/bench", value_hint = ValueHint::DirPath)]
    pub from: PathBuf,
    /// Write report.html, results.json and ratios.svg to DIR, which is made if it is missing
    /// [default: that of --from].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,
    /// Say what became better or worse since the report that wrote OLD.json, its results.json.
    #[arg(long, value_name = "OLD.json", value_hint = ValueHint::FilePath)]
    pub compare: Option<PathBuf>,
    /// Print results.json instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchCase {
    /// Descriptors through the ring of vbus and through a split virtqueue, and their wake-ups.
    Ring,
    /// Synchronous calls of a device, in this process and over the daemon's socket.
    Call,
    /// Ethernet frames through a loopback and a switch, beside sockets and a bridge; needs root.
    Frames,
    /// Pages that are dropped and come back, beside pages that are swapped, in files of this directory;
    /// scripts/bench-reclaim measures guests.
    Reclaim,
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
