//! Flags of `alacrity bench` and what it does. Part of `args.rs`, with its rules.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint, value_parser};

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

const GUESTS_NOTES: &str = "\
Guests of alacrity and of its peers, side by side on this host: same kernel, root file system, words,
memory and vCPUs. Rounds alternate the order (A B C, C B A); a guest that stands still is ended and
tried again. `X-again` is ours measured a second time in the same round: as far as it is from ours,
other ratios are noise. Only ratios of one run mean anything; keep the machine idle.

  net     a guest and its host through a TAP: venet, virtio (our virtio-net), qemu (its virtio-net in
          user space), qemu-vhost, and qemu-vhost-pio, whose doorbells are ports; with virtio, venet
          and virtio also in one guest, in turns (`one-`); with bridge, two guests (`g2g-`): switch, a venet-switch of `alacrity host`, and bridge, two
          guests of QEMU with vhost-net
            rr               one byte there and back over TCP: transactions per second, p50, p99
            out, in          one TCP stream (iperf3) from and to the guest
            udp-out, udp-in  datagrams in frames of 64 bytes, as fast as they go
            load             out at 10, 50 and 100 % of the rate that `out` had
          each with VM exits by reason, interrupts, doorbells, system calls, and CPU time of guest
          and host, for each packet of the guest's interface
  boot    start of the program to the first line of the guest's init; also kvmtool, if asked for
  memory  PSS of the VMM without guest memory, one vCPU and one interface, after traffic
  verbs   operations of the virtual bus in one guest, beside what they are made of and what others do
          instead, each again and again by a kernel module (vbus_times.ko of the guest image), which
          nobody answers who would have to wake up first; --peers, --cases and --seconds do not matter
            verb-call        a call of a device: beside pio-exit, a port write that the VMM ignores, and
                             virtio-ctrl, the same request by the control queue of our virtio-net
            doorbell         of a ring whose host sleeps: beside pio-eventfd and mmio-eventfd, a bare
                             port and a doorbell of virtio-net in memory; suppressed: the host is awake
          each with nanoseconds, VM exits, those that reach the VMM, and in scripts/lab --instructions
          instructions of host and guest, for one operation, without what doing nothing costs
  all     these four

Everything runs in a network namespace of its own, which goes with all in it, also after Ctrl-C.
Needs root, KVM, iperf3, the guest image (scripts/guest-image), and the peers that are asked for.

EXAMPLES:
  Is it working? One short round:
    sudo alacrity bench net --quick --peers qemu
  Everything, and a page of it:
    sudo alacrity bench all --report target/bench
  What a call of a device costs:
    sudo alacrity bench verbs
  Only latency against vhost-net, five rounds of ten seconds:
    sudo alacrity bench net --cases rr --peers qemu-vhost --rounds 5 --seconds 10
  How it scales, all of it and by guests only:
    sudo alacrity bench net --sweeps
    sudo alacrity bench net --cases ports,guests
  Where there is no hardware virtualization:
    scripts/lab --timeout 6000 -- target/release/alacrity bench all

EXIT STATUS:
  0      measured, whatever the result
  1      something has no value: its guests stood still each time
  2      bad usage, or something has to be installed first; nothing was started
  4      the host or KVM failed
  128+N  signal N ended it; raw values until then are there";

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

/// What to measure with guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestBench {
    /// Networks.
    Net,
    /// Time to start.
    Boot,
    /// Memory of the VMM.
    Memory,
    /// Operations of the virtual bus.
    Verbs,
    /// All of it.
    All,
}

/// Flags of `alacrity bench net`, `boot`, `memory`, `verbs` and `all`.
#[derive(Debug, Default, Args)]
#[command(after_long_help = GUESTS_NOTES)]
pub struct GuestBenchArgs {
    /// What ours is compared with: virtio, qemu, qemu-vhost, qemu-vhost-pio, bridge, kvmtool [default: all but kvmtool].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub peers: Option<Vec<String>>,
    /// Cases of net: rr, out, in, udp-out, udp-in, load, and the sweeps sizes, queues, venets, ports, guests
    /// [default: all but the sweeps].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cases: Vec<String>,
    /// Measurements of each case and peer [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: Option<u16>,
    /// Length of each measurement of a network [default: 4].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u16).range(1..=600))]
    pub seconds: Option<u16>,
    /// One round of one second, without controls; the values mean little.
    #[arg(long)]
    pub quick: bool,
    /// With all sweeps: the size of what is sent, queues, interfaces of a guest, guests on a switch, guests.
    #[arg(long)]
    pub sweeps: bool,
    /// Write raw values to FILE [default: net.json and so on in the directory of --report].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub json: Option<PathBuf>,
    /// Put raw values in DIR, and then make the page of `alacrity bench report` of all that is there
    /// [default: raw values go to target/bench, and no page is made].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub report: Option<PathBuf>,
    /// Kernel of all guests: an uncompressed vmlinux [default: that of the default guest image].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// Root file system of all guests, made by scripts/guest-image [default: likewise].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
}
