//! Engines as processes: real llama.cpp servers with the tiny model, and the binary's own `mock-engine`.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::http;
use super::process::Process;
use super::time::wait_for;
use super::{free_address, root, skip, target};

/// An engine that serves model `m`.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its process.
    pub(crate) process: Process,
}

impl Engine {
    /// Starts `count` real llama.cpp servers; `None` (after saying so) when `./x setup` has not been run.
    pub(crate) fn llama(count: usize, slots: usize, context: usize) -> Option<Vec<Self>> {
        Self::llama_with(count, slots, context, &[])
    }

    /// The same with further `flags` of `tests/engines/tiny_engine.py`.
    pub(crate) fn llama_with(count: usize, slots: usize, context: usize, flags: &[&str]) -> Option<Vec<Self>> {
        let python = target("venv/bin/python");
        let model = target("engines");
        if !python.exists() || !model.join("tiny.gguf").exists() {
            skip("llama.cpp engines: run ./x setup first");
            return None;
        }
        let start = |_| Self::start_llama(free_address(), slots, context, flags);
        let engines: Vec<Self> = (0..count).map(start).collect();
        for engine in &engines {
            engine.wait_healthy();
        }
        Some(engines)
    }

    fn start_llama(address: SocketAddr, slots: usize, context: usize, flags: &[&str]) -> Self {
        let mut command = Command::new(target("venv/bin/python"));
        command.arg(root().join("tests/engines/tiny_engine.py")).arg("serve").arg(target("engines"));
        command.args(["--port", &address.port().to_string(), "--alias", "m"]);
        command.args(["--slots", &slots.to_string(), "--ctx", &context.to_string()]).args(flags);
        Self { address, process: Process::start("llama.cpp", &mut command) }
    }

    /// Starts a llama.cpp server that has ended again, at its address; returns once it is healthy.
    pub(crate) fn restart_llama(&mut self, slots: usize, context: usize) {
        *self = Self::start_llama(self.address, slots, context, &[]);
        self.wait_healthy();
    }

    /// Starts a mock engine; `arguments` come after the usual ones.
    pub(crate) fn mock(arguments: &[&str]) -> Self {
        Self::mock_at(free_address(), arguments)
    }

    /// Starts a mock engine at `address`.
    pub(crate) fn mock_at(address: SocketAddr, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
        command.args(["mock-engine", "--listen", &address.to_string(), "--model", "m"]).args(arguments);
        let engine = Self { address, process: Process::start("mock-engine", &mut command) };
        engine.wait_healthy();
        engine
    }

    /// Starts `count` mock engines.
    pub(crate) fn mocks(count: usize, arguments: &[&str]) -> Vec<Self> {
        (0..count).map(|_| Self::mock(arguments)).collect()
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Counters of a mock engine.
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        http::get(self.address, "/mock/stats").unwrap().json()
    }

    /// One counter of a mock engine.
    #[track_caller]
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let stats = &self.stats()["stats"];
        stats[name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {stats}"))
    }

    fn wait_healthy(&self) {
        wait_for("an engine to be healthy", Duration::from_secs(30), || {
            http::get(self.address, "/health").is_ok_and(|answer| answer.status() == 200)
        });
    }
}

/// The URLs of `engines`.
pub(crate) fn urls(engines: &[Engine]) -> Vec<String> {
    engines.iter().map(Engine::url).collect()
}
