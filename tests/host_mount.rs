//! The mount as a file system: who may do what, what reading and writing mean, how it goes away.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::thread;

use common::daemon::{Session, Site};
use common::host::is_root;
use common::refused::refusal;
use common::{DEADLINE, assert_says, skip, until};
use rustix::process::{Signal, kill_process};

#[test]
fn signals_end_it_cleanly_with_status_0() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let site = Site::new();
        let Some(daemon) = site.mounted(&[]) else {
            return;
        };
        assert_eq!(site.mounts().len(), 1);

        let status = daemon.stop(signal);

        assert_eq!(status, Some(0), "{signal:?}");
        assert!(site.mounts().is_empty(), "{signal:?}");
        assert!(!site.socket().exists(), "{signal:?}");
    }
}

#[test]
fn mount_in_use_goes_away_all_the_same() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    let script = "cd config; echo there; exec sleep 100";
    let mut user = Session::command(script, &site.mount_point(), &site.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    user.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 6])
        .unwrap();
    let open = fs::File::open(site.mount_point().join("sys/version")).unwrap();

    let status = daemon.stop(Signal::TERM);

    assert_eq!(status, Some(0));
    assert!(site.mounts().is_empty());
    assert!((&open).read(&mut [0; 8]).is_err());
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn mount_of_a_killed_daemon_is_replaced() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    kill_process(daemon.unmounter(), Signal::KILL).unwrap();
    daemon.kill();
    let stale = fs::read_dir(site.mount_point()).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(libc::ENOTCONN));

    let daemon = site.mounted(&[]).unwrap();

    assert_eq!(site.mounts().len(), 1);
    assert_eq!(site.shell("cat sys/version").ok(), "2\n");
    assert!(daemon.stderr.text().contains("replacing"));
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn mount_of_a_killed_daemon_goes_away_by_itself() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };

    daemon.kill();

    assert!(until(DEADLINE, || site.mounts().is_empty()));
    let daemon = site.mounted(&[]).unwrap();
    assert!(!daemon.stderr.text().contains("replacing"));
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn daemon_ends_as_ever_when_nobody_unmounts_for_it() {
    let site = Site::new();
    let Some(mut daemon) = site.mounted(&[]) else {
        return;
    };
    let unmounter = daemon.unmounter();
    kill_process(unmounter, Signal::KILL).unwrap();

    daemon.signal(Signal::TERM);

    let is_told = daemon.stderr.wait_for("stays mounted", 1, DEADLINE);
    let status = daemon.wait();
    assert!(is_told, "{status:?} {}", daemon.stderr.text());
    assert_eq!(status, Some(0));
    let daemon = site.mounted(&[]).unwrap();
    assert_says(&daemon.stderr.text(), &["replacing"]);
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn signals_for_a_whole_service_leave_nothing_mounted() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        kill_process(daemon.unmounter(), signal).unwrap();
    }
    assert_eq!(site.mounts().len(), 1);

    assert_eq!(daemon.stop(Signal::TERM), Some(0));

    assert!(site.mounts().is_empty());
}

#[test]
fn mount_that_lives_is_not_touched() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };
    let socket = site.path("other.sock");

    let output = site
        .command(&["--mount", "mnt", "--socket", socket.to_str().unwrap()])
        .output()
        .unwrap();

    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_says(&text, &["another alacrity host is mounted on mnt"]);
    assert!(!socket.exists());
    assert_eq!(site.shell("cat sys/version").ok(), "2\n");
}

#[test]
fn mount_of_a_daemon_that_is_stopped_is_not_touched() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    daemon.signal(Signal::STOP);
    let socket = site.path("other.sock");

    let mut second = site
        .command(&["--mount", "mnt", "--socket", socket.to_str().unwrap()])
        .spawn()
        .unwrap();
    let is_refused = until(DEADLINE, || second.try_wait().unwrap().is_some());
    daemon.signal(Signal::CONT);

    assert!(is_refused, "it waits for a daemon that is stopped");
    let output = second.wait_with_output().unwrap();
    assert_says(
        &refusal(&output),
        &["another alacrity host is mounted on mnt"],
    );
    assert_eq!(site.shell("cat sys/version").ok(), "2\n");
}

#[test]
fn daemon_goes_on_when_somebody_else_unmounts() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };

    let outcome = Command::new("umount")
        .arg(site.mount_point())
        .status()
        .unwrap();

    assert!(outcome.success());
    assert!(
        daemon
            .stderr
            .wait_for("unmounted from outside", 1, DEADLINE)
    );
    assert_eq!(site.shell("vbus cat sys/version").ok(), "2\n");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn what_was_mounted_there_instead_is_left_alone() {
    if !is_root() {
        return skip("needs root");
    }
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    let script = "umount mnt && mount -t tmpfs none mnt";
    Session::run(script, site.dir.path(), &site.socket()).ok();

    let status = daemon.stop(Signal::TERM);

    assert_eq!(status, Some(0));
    let mounts = site.mounts();
    assert!(
        mounts.len() == 1 && mounts[0].contains("tmpfs"),
        "{mounts:?}"
    );
    Session::run("umount mnt", site.dir.path(), &site.socket()).ok();
}

#[test]
fn tree_is_private_unless_asked() {
    if !is_root() {
        return skip("needs root, to become another user");
    }
    let site = Site::new();
    fs::set_permissions(site.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let other = |script: &str| {
        let script =
            format!("setpriv --reuid 65534 --regid 65534 --clear-groups bash -c '{script}'");
        Session::run(&script, site.dir.path(), &site.socket())
    };

    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    let private = other("ls mnt").stderr;
    daemon.stop(Signal::TERM);
    let daemon = site.mounted(&["--allow-other"]).unwrap();
    site.shell("mkdir config/devices/eth0").ok();
    let shared = other("cat mnt/sys/version").ok();
    let write = other("echo venet-loopback > mnt/config/devices/eth0/type").err();
    let make = other("mkdir mnt/config/devices/eth1").err();
    let remove = other("rmdir mnt/config/devices/eth0").err();
    daemon.stop(Signal::TERM);

    assert_says(&private, &["Permission denied"]);
    assert_eq!(shared, "2\n");
    for refused in [write, make, remove] {
        assert_says(&refused, &["Permission denied"]);
    }
}

/// Runs with a `/dev/fuse` for everybody, in a mount namespace of its own.
const UNPRIVILEGED: &str = r#"
    set -e
    mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
    cp "$ALACRITY" program; chown 65534:65534 mnt .; export XDG_RUNTIME_DIR=$PWD
    user=(setpriv --reuid 65534 --regid 65534 --clear-groups)
    start() { # as a child of this shell, whose id is $!
        : > ready # the child may be late to empty it
        "${user[@]}" ./program host --mount mnt > ready 2> log &
        for _ in {1..600}; do grep -q ready: ready && return; sleep 0.1; kill -0 $! || break; done; cat log; exit 1
    }
    start
    "${user[@]}" mkdir mnt/config/devices/eth0
    "${user[@]}" stat -c %U mnt/config/devices/eth0
    "${user[@]}" ./program vbus ls config/devices
    ls mnt 2>&1 || true
    kill -KILL $!; wait $! 2> wait || true
    start
    "${user[@]}" cat mnt/sys/version
    kill -TERM $!; wait $!; echo "status $?"
    grep -c "$PWD/mnt" /proc/self/mountinfo || true
"#;

#[test]
fn user_without_root_mounts_with_fusermount3() {
    if !is_root() {
        return skip("needs root, to become another user");
    }
    let site = Site::new();
    if site.mounted(&[]).is_none() {
        return;
    }
    if Command::new("fusermount3").arg("-V").output().is_err() {
        return skip("needs fusermount3, from the package fuse3");
    }
    fs::set_permissions(site.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();

    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", UNPRIVILEGED])
        .current_dir(site.dir.path())
        .env("ALACRITY", common::ALACRITY)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();

    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        text, "nobody\neth0\nls: cannot access 'mnt': Permission denied\n2\nstatus 0\n0\n",
        "{errors}"
    );
}

#[test]
fn nodes_have_owner_mode_size_and_time() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };
    let before = std::time::SystemTime::now();
    site.shell(
        "mkdir config/instances/bus0 config/devices/eth0
         echo venet-loopback > config/devices/eth0/type
         ln -s ../../devices/eth0 config/instances/bus0/eth0",
    )
    .ok();

    let modes = site
        .shell(
            "stat -c '%A %s %h %n' . config config/devices config/devices/eth0 \
             config/devices/eth0/type config/instances/bus0/eth0 sys/version sys/devices",
        )
        .ok();
    let kind = fs::metadata(site.mount_point().join("config/devices/eth0/type")).unwrap();

    assert_eq!(
        modes,
        "dr-xr-xr-x 0 1 .\n\
         dr-xr-xr-x 0 1 config\n\
         drwxr-xr-x 0 1 config/devices\n\
         dr-xr-xr-x 0 1 config/devices/eth0\n\
         -rw-r--r-- 15 1 config/devices/eth0/type\n\
         lrwxrwxrwx 18 1 config/instances/bus0/eth0\n\
         -r--r--r-- 2 1 sys/version\n\
         dr-xr-xr-x 0 1 sys/devices\n"
    );
    assert_eq!(kind.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(kind.gid(), rustix::process::getegid().as_raw());
    assert!(kind.modified().unwrap() >= before - std::time::Duration::from_secs(1));
}

#[test]
fn every_way_to_write_a_value_works() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };

    let types = site
        .shell(
            "cd config/devices; mkdir a b c d e f; printf 'venet-loopback\\n' > /tmp/value.$$
             echo venet-loopback > a/type
             echo -n venet-loopback > b/type
             printf '%s' venet-loopback >> c/type
             echo venet-loopback | tee d/type >/dev/null
             cp /tmp/value.$$ e/type
             dd if=/tmp/value.$$ of=f/type status=none
             rm /tmp/value.$$
             cat */type | sort | uniq -c",
        )
        .ok();

    assert_eq!(types.trim(), "6 venet-loopback");
}

#[test]
fn value_is_taken_as_a_whole_or_not_at_all() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };
    site.shell("mkdir config/devices/eth0").ok();
    let path = site.mount_point().join("config/devices/eth0/type");
    let open = || fs::OpenOptions::new().write(true).open(&path).unwrap();

    let mut file = open();
    file.seek(std::io::SeekFrom::Start(6)).unwrap();
    let second_half = file.write(b"loopback").unwrap_err();
    let too_long = open().write(&[b'x'; 4097]).unwrap_err();
    let much_too_long = open().write(&vec![b'x'; 3 << 20]).unwrap_err();
    let no_text = open().write(b"\xff\xfe").unwrap_err();
    let nothing = site.shell("true > config/devices/eth0/type; cat config/devices/eth0/type");

    for error in [second_half, too_long, much_too_long, no_text] {
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
    }
    assert_eq!(nothing.ok(), "\n");
}

#[test]
fn what_the_tree_has_no_room_for_is_not_permitted() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };
    site.shell("mkdir config/devices/eth0 config/instances/bus0")
        .ok();

    let text = site
        .shell(
            "cd config
             touch devices/file; mkdir sys; mkfifo devices/fifo; ln devices/eth0/type devices/hard
             mv devices/eth0 devices/eth1; chmod 777 devices/eth0/type; chown 1 devices/eth0/type
             touch devices/eth0/type; echo 3 > ../sys/version; mkdir devices/eth0/below
             ln -s /etc/passwd instances/bus0/eth0; ln -s ../../devices instances/bus0/eth0
             ln -s ../devices/eth0 devices/link; rm devices/eth0/type",
        )
        .stderr;

    let reasons: Vec<_> = text
        .lines()
        .map(|line| line.rsplit(": ").next().unwrap())
        .collect();
    let not_permitted = "Operation not permitted";
    assert_eq!(
        reasons,
        [
            not_permitted,       // touch
            not_permitted,       // mkdir
            not_permitted,       // mkfifo
            not_permitted,       // ln
            not_permitted,       // mv
            not_permitted,       // chmod
            not_permitted,       // chown
            not_permitted,       // touch
            "Permission denied", // echo
            not_permitted,       // mkdir
            "Invalid argument",  // ln -s to what is not in the tree
            "Invalid argument",  // ln -s to what is no device
            not_permitted,       // ln -s in a directory without links
            not_permitted,       // rm
        ],
        "{text}"
    );
}

#[test]
fn link_targets_may_be_absolute_and_lead_through_links() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };

    let links = site
        .shell(
            "cd config; mkdir devices/{a,b,c} instances/{x,y,z}
             for device in a b c; do echo venet-loopback > devices/$device/type; done
             ln -s \"$PWD/devices/a\" instances/x/a
             ln -s ../x/../../devices/b instances/y/
             (cd instances/z && ln -s ../../devices/c)
             readlink instances/*/*",
        )
        .ok();

    assert_eq!(links, "../../devices/a\n../../devices/b\n../../devices/c\n");
}

#[test]
fn open_file_shows_each_value_whole_and_the_next_one_after_a_seek() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };
    site.shell("mkdir config/devices/eth0").ok();
    let path = site.mount_point().join("config/devices/eth0/type");
    let mut file = fs::File::open(&path).unwrap();
    let mut text = String::new();

    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "\n");
    site.shell("echo venet-loopback > config/devices/eth0/type")
        .ok();
    file.rewind().unwrap();
    let mut start = [0; 5];
    file.read_exact(&mut start).unwrap();
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();

    assert_eq!((&start, rest.as_str()), (b"venet", "-loopback\n"));
}

#[test]
fn node_that_was_made_anew_is_another_one() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };
    site.shell("mkdir config/devices/eth0").ok();
    let path = site.mount_point().join("config/devices/eth0/type");
    let mut old = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let old_ino = fs::metadata(&path).unwrap().ino();

    site.shell("rmdir config/devices/eth0; mkdir config/devices/eth0")
        .ok();

    assert_ne!(fs::metadata(&path).unwrap().ino(), old_ino);
    let error = old.write(b"venet-loopback\n").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    assert_eq!(fs::read_to_string(&path).unwrap(), "\n");
}

#[test]
fn sixty_four_buses_with_eight_devices_each() {
    let site = Site::new();
    let Some(_daemon) = site.mounted(&[]) else {
        return;
    };

    site.shell(
        "cd config
         for bus in {0..63}; do
             mkdir instances/bus$bus
             for device in {0..7}; do
                 mkdir devices/d$bus.$device
                 echo venet-loopback > devices/d$bus.$device/type
                 ln -s ../../devices/d$bus.$device instances/bus$bus/
             done
         done",
    )
    .ok();
    let seen = site
        .shell(
            "ls sys/devices | wc -l; ls -d sys/instances/*/devices/? | wc -l
             cat sys/instances/*/devices/?/type | sort | uniq -c
             find . -name type | wc -l; find -L config -mindepth 2 -name 'd*' | wc -l",
        )
        .ok();
    site.shell("rm config/instances/*/*; rmdir config/*/*").ok();
    let left = site.shell("find . | wc -l").ok();

    let words: Vec<_> = seen.split_whitespace().collect();
    assert_eq!(
        words,
        ["512", "512", "512", "virtual-ethernet", "1024", "1024"]
    );
    // Root, config and two in it, sys and five in it, and the three classes.
    assert_eq!(left.trim(), "13");
}

#[test]
fn concurrent_administrators_do_not_disturb_each_other() {
    let site = Site::new();
    let Some(daemon) = site.mounted(&[]) else {
        return;
    };
    let by_mount = "
        for round in {1..20}; do
            mkdir config/devices/$NAME config/instances/$NAME || exit 1
            echo venet-switch > config/devices/$NAME/type || exit 1
            ln -s ../../devices/$NAME config/instances/$NAME/port || exit 1
            [ \"$(cat sys/instances/$NAME/devices/0/type)\" = virtual-ethernet ] || exit 1
            ls -lR . > /dev/null 2>&1
            mkdir config/devices/shared 2> /dev/null && rmdir config/devices/shared
            rm config/instances/$NAME/port || exit 1
            rmdir config/devices/$NAME config/instances/$NAME || exit 1
        done";
    let by_socket = "
        for round in {1..20}; do
            vbus mkdir config/devices/$NAME config/instances/$NAME || exit 1
            vbus echo venet-switch config/devices/$NAME/type || exit 1
            vbus ln -s config/devices/$NAME config/instances/$NAME/port || exit 1
            vbus tree > /dev/null
            vbus rm config/instances/$NAME/port || exit 1
            vbus rmdir config/devices/$NAME config/instances/$NAME || exit 1
        done";

    let sessions = thread::scope(|scope| {
        let shells: Vec<_> = (0..6)
            .map(|idx| {
                let script = if idx % 2 == 0 { by_mount } else { by_socket };
                let script = format!("NAME=admin{idx}\n{script}");
                let site = &site;
                scope.spawn(move || site.shell(&script))
            })
            .collect();
        shells
            .into_iter()
            .map(|shell| shell.join().unwrap())
            .collect::<Vec<_>>()
    });

    for session in sessions {
        session.ok();
    }
    assert_eq!(
        site.shell("ls config/devices config/instances").ok(),
        "config/devices:\n\nconfig/instances:\n"
    );
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}
