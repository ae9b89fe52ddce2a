//! For tests: threads of this process by name.

use std::fs;
use std::path::Path;

/// The kernel's id of the thread that calls this.
pub fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// The kernel's id of the thread called `name`, as far as the kernel knows names: 15 bytes.
///
/// # Panics
/// No thread or several are called that.
pub fn tid_of(name: &str) -> i32 {
    let is_it = |task: &Path| {
        fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let tasks = fs::read_dir("/proc/self/task").expect("a process has threads");
    let mut found = tasks
        .filter_map(|task| Some(task.ok()?.path()))
        .filter(|task| is_it(task));
    let task = found
        .next()
        .unwrap_or_else(|| panic!("no thread is called {name}"));
    assert!(found.next().is_none(), "several threads are called {name}");
    let tid = task.file_name().and_then(|tid| tid.to_str()?.parse().ok());
    tid.expect("threads are listed by number")
}
