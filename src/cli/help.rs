//! What the help of each command says after its flags. Part of `args.rs`, with its rules.

pub const EXIT_STATUS: &str = "\
EXIT STATUS:
  0      the guest powered off or rebooted
  N      with --exec: the status of the command
  2      bad usage or input; nothing was started
  3      the guest panicked
  4      the host or KVM failed
  128+N  signal N ended the VM before the guest had powered off";

pub const RUN_EXAMPLES: &str = "\
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

pub const HOST_EXAMPLES: &str = "\
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

pub const VBUS_EXAMPLES: &str = "\
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

pub const PS_NOTES: &str = "\
Lists the VMs of this user, those of `sudo alacrity run` only as root. One that does
not answer within 5 seconds is shown as silent: its process may be stopped.

EXAMPLES:
  alacrity ps
  alacrity ps --json | jq '.[].resident_bytes'

EXIT STATUS:
  0  listed, also if no VM runs
  2  bad usage, or there is no place where VMs could be";

pub const STAT_NOTES: &str = "\
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

pub const RECLAIM_NOTES: &str = "\
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

pub const TARGET_NOTES: &str = "\
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

pub const MEMMAP_NOTES: &str = "\
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

pub const TOP_EXAMPLES: &str = "\
EXAMPLES:
  alacrity check                      can this machine run guests?
  scripts/guest-image                 make the default guest, once
  alacrity run                        boot it
  alacrity run --exec 'cat /proc/version'
  alacrity run --help                 all about VMs
  alacrity ps                         the VMs that run
  alacrity host --mount /run/alacrity/vbus    a virtual bus, as files
  alacrity vbus tree                  the same without a mount";
