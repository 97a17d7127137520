//! `emberlane serve` under test: started on free ports, ready when this returns, ended with the test.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::http::{self, Answer};
use super::process::Process;
use super::time::{holds_within, wait_for};

/// Longest time from start to ready.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// How to start a gateway.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Where clients connect.
    pub(crate) listen: SocketAddr,
    /// Where its state is read.
    pub(crate) admin: SocketAddr,
    replicas: Vec<String>,
    policy: Option<&'static str>,
    yaml: String,
    directory: tempfile::TempDir,
}

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Where clients connect.
    pub(crate) listen: SocketAddr,
    /// Where its state is read.
    pub(crate) admin: SocketAddr,
    /// The process.
    pub(crate) process: Process,
    /// How it was started; holds its files.
    pub(crate) setup: Setup,
}

impl Setup {
    /// A gateway in front of the replicas at these URLs.
    pub(crate) fn new(replicas: &[String]) -> Self {
        Self {
            listen: super::free_address(),
            admin: super::free_address(),
            replicas: replicas.to_vec(),
            policy: None,
            yaml: String::new(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// Chooses a policy by name.
    pub(crate) const fn policy(mut self, name: &'static str) -> Self {
        self.policy = Some(name);
        self
    }

    /// Adds YAML at the top level of the file; it is then started with `-c`.
    pub(crate) fn yaml(mut self, text: &str) -> Self {
        self.yaml.push_str(text);
        self.yaml.push('\n');
        self
    }

    /// The configuration file's path.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("emberlane.yaml")
    }

    /// The configuration with these replicas instead.
    pub(crate) fn file_text(&self, replicas: &[String]) -> String {
        let mut text = format!("listen: [\"{}\"]\nadmin: \"{}\"\n", self.listen, self.admin);
        // They may stand in what a test adds.
        text.push_str(if self.yaml.contains("\nreplicas:") { "" } else { "replicas:\n" });
        for url in replicas {
            writeln!(text, "  - url: \"{url}\"").unwrap();
        }
        if let Some(policy) = self.policy {
            writeln!(text, "policy:\n  name: {policy}").unwrap();
        }
        text + &self.yaml
    }

    /// The command that serves this, from a file when it needs one.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
        command.arg("serve").env("RUST_BACKTRACE", "1");
        if self.yaml.is_empty() {
            command.arg("--listen").arg(self.listen.to_string()).arg("--admin").arg(self.admin.to_string());
            for url in &self.replicas {
                command.arg("--replica").arg(url);
            }
            if let Some(policy) = self.policy {
                command.arg("--policy").arg(policy);
            }
        } else {
            std::fs::write(self.file(), self.file_text(&self.replicas)).unwrap();
            command.arg("-c").arg(self.file());
        }
        command
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> Gateway {
        self.start_until("/readyz")
    }

    /// Starts it and waits until it lives, ready or not: for fleets without a replica that answers.
    #[track_caller]
    pub(crate) fn start_unready(self) -> Gateway {
        self.start_until("/healthz")
    }

    #[track_caller]
    fn start_until(self, path: &str) -> Gateway {
        let process = Process::start("emberlane", &mut self.command());
        let mut gateway = Gateway { listen: self.listen, admin: self.admin, process, setup: self };
        let ready = holds_within(READY_LIMIT, || {
            assert!(gateway.process.ended().is_none(), "emberlane ended at start");
            http::get(gateway.admin, path).is_ok_and(|answer| answer.status() == 200)
                && std::net::TcpStream::connect(gateway.listen).is_ok()
        });
        assert!(ready, "emberlane was not ready within {READY_LIMIT:?}");
        gateway
    }
}

impl Gateway {
    /// One POST on its own connection.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        http::post(self.listen, path, body).unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// One GET from the admin listener.
    #[track_caller]
    pub(crate) fn admin_get(&self, path: &str) -> Answer {
        http::get(self.admin, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// The replicas as `/replicas` tells them.
    #[track_caller]
    pub(crate) fn replicas(&self) -> Vec<Value> {
        let answer = self.admin_get("/replicas").json();
        answer.as_array().unwrap_or_else(|| panic!("/replicas is not an array: {answer}")).clone()
    }

    /// The state of each replica, in the order of the configuration.
    #[track_caller]
    pub(crate) fn states(&self) -> Vec<String> {
        self.replicas().iter().map(|replica| replica["state"].as_str().unwrap().to_owned()).collect()
    }

    /// The decisions on record, newest first.
    #[track_caller]
    pub(crate) fn decisions(&self) -> Vec<Value> {
        self.admin_get("/decisions").json().as_array().unwrap().clone()
    }

    /// Tokens of `body`'s prompt that the replica it would go to holds, as `/explain` tells.
    #[track_caller]
    pub(crate) fn warm_tokens(&self, body: &str) -> u64 {
        let answer = http::post(self.admin, "/explain", body).unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let tokens = answer.json()["chosen"]["warm_tokens"].as_f64().unwrap(); // a whole number
        format!("{tokens:.0}").parse().unwrap()
    }

    /// Requests in flight over all replicas.
    #[track_caller]
    pub(crate) fn in_flight(&self) -> u64 {
        self.replicas().iter().map(|replica| replica["in_flight"].as_u64().unwrap()).sum()
    }

    /// Waits until no request is in flight by the gateway's own count.
    #[track_caller]
    pub(crate) fn wait_idle(&self) {
        wait_for("in_flight to return to zero", Duration::from_secs(5), || self.in_flight() == 0);
    }

    /// A good request is answered: what went before did no lasting harm.
    #[track_caller]
    pub(crate) fn assert_serves(&self) {
        let answer = self.post("/v1/chat/completions", &super::chat("are you well?"));
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }

    /// Replaces the configuration file and sends SIGHUP.
    pub(crate) fn reload(&self, text: &str) {
        let next = self.setup.directory.path().join("next.yaml");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, self.setup.file()).unwrap();
        self.process.signal(Signal::SIGHUP);
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
