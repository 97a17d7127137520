//! A child process that ends with its test and whose output is shown when the test fails.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::time::{holds_within, wait_for};

/// Lines of output kept, newest last.
const LINES_MAX: usize = 2_000;

/// A running child.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`, reading what it prints.
    pub(crate) fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} did not start: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            read_lines(child.stdout.take().unwrap(), Arc::clone(&lines)),
            read_lines(child.stderr.take().unwrap(), Arc::clone(&lines)),
        ];
        Self { name: name.to_owned(), child, lines, readers }
    }

    /// Process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// The exit status, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        let name = self.name.clone();
        wait_for(&format!("{name} to end"), limit, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.read_all();
        status.unwrap()
    }

    /// Kills it at once, as a crash would, and reaps it.
    pub(crate) fn crash(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits a moment for the pipes of an ended child to be read to their end.
    fn read_all(&self) {
        let _ = holds_within(Duration::from_millis(500), || self.readers.iter().all(JoinHandle::is_finished));
    }

    /// All it printed so far.
    pub(crate) fn output(&self) -> String {
        self.lines.lock().join("\n")
    }

    /// True once a printed line holds `needle`.
    pub(crate) fn printed(&self, needle: &str) -> bool {
        self.lines.lock().iter().any(|line| line.contains(needle))
    }

    /// Waits until a printed line holds `needle`.
    #[track_caller]
    pub(crate) fn wait_printed(&self, needle: &str, limit: Duration) {
        wait_for(&format!("{} to print {needle:?}", self.name), limit, || self.printed(needle));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let running = self.ended().is_none();
        if running {
            self.crash();
        }
        self.read_all();
        if std::thread::panicking() {
            let state = if running { "running" } else { "ended" };
            eprintln!("---- output of {} ({state}) ----\n{}\n----", self.name, self.output());
        }
    }
}

/// Reads lines until the pipe closes.
fn read_lines(pipe: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut kept = lines.lock();
            if kept.len() == LINES_MAX {
                kept.remove(0);
            }
            kept.push(line);
        }
    })
}
