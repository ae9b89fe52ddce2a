//! Flags of `alacrity bench net|boot|memory|verbs|all`. Part of `args.rs`, with its rules.

use std::path::PathBuf;

use clap::{Args, ValueHint};

const NOTES: &str = "\
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
#[command(after_long_help = NOTES)]
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
