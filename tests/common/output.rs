//! What a program prints, collected while it runs.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    is_closed: bool,
}

/// A growing copy of a stream.
#[derive(Debug, Clone, Default)]
pub struct Output(Arc<(Mutex<Collected>, Condvar)>);

impl Output {
    /// Collects `stream` until its end, or until it fails: a terminal's end looks like that.
    pub fn collect(mut stream: impl Read + Send + 'static) -> Self {
        let output = Output::default();
        let collected = output.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                collected.add(&buffer[..n]);
                if n == 0 {
                    return;
                }
            }
        });
        output
    }

    fn add(&self, bytes: &[u8]) {
        let (mutex, condvar) = &*self.0;
        let mut collected = mutex.lock().unwrap();
        collected.bytes.extend_from_slice(bytes);
        collected.is_closed |= bytes.is_empty();
        condvar.notify_all();
    }

    fn wait(&self, deadline: Duration, is_met: impl Fn(&Collected) -> bool) -> bool {
        let (mutex, condvar) = &*self.0;
        let collected = mutex.lock().unwrap();
        let (collected, _) = condvar
            .wait_timeout_while(collected, deadline, |it| !is_met(it) && !it.is_closed)
            .unwrap();
        is_met(&collected)
    }

    /// Waits until `text` was printed at least `times`; false at the deadline or at the end.
    pub fn wait_for(&self, text: &str, times: usize, deadline: Duration) -> bool {
        self.wait(deadline, |it| {
            String::from_utf8_lossy(&it.bytes).matches(text).count() >= times
        })
    }

    /// Waits for the end of the stream; false at the deadline.
    pub fn wait_closed(&self, deadline: Duration) -> bool {
        self.wait(deadline, |it| it.is_closed)
    }

    /// All of it until now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }
}
