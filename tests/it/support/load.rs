//! Steady traffic in the background of a test: threads that send one request after another and keep what failed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::http;
use super::time::wait_for;

/// Requests being sent until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Starts `threads` senders of short chat requests, each request on a connection of its own.
    pub(crate) fn start(address: SocketAddr, threads: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |seed: u64| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || send(address, seed, &shared))
        };
        let threads = (0..threads).map(spawn).collect();
        Self { shared, threads }
    }

    /// Requests answered with 200 so far.
    pub(crate) fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Waits until `more` further requests were answered.
    #[track_caller]
    pub(crate) fn wait_more(&self, more: usize) {
        let goal = self.answered() + more;
        wait_for("requests to be answered", Duration::from_secs(20), || {
            self.answered() >= goal || !self.shared.failures.lock().is_empty()
        });
    }

    /// Stops, and fails the test if any request failed.
    #[track_caller]
    pub(crate) fn stop(self) -> usize {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let failures = self.shared.failures.lock();
        let answered = self.shared.answered.load(Ordering::Relaxed);
        assert!(failures.is_empty(), "{} of {} failed: {:?}", failures.len(), answered + failures.len(), failures[0]);
        answered
    }
}

fn send(address: SocketAddr, seed: u64, shared: &Shared) {
    let mut count = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        count += 1;
        let body = super::chat(&super::text(seed * 1_000_000 + count, 400));
        match http::post(address, "/v1/chat/completions", &body) {
            Ok(answer) if answer.status() == 200 => {
                shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => shared.failures.lock().push(format!("{}: {}", answer.status(), answer.text())),
            Err(error) => shared.failures.lock().push(error.to_string()),
        }
    }
}
