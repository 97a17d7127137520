//! The command line: one binary, one subcommand a job.

pub mod agent;
pub mod check;
pub mod demo;
pub mod explain;
pub mod mock_engine;
pub mod serve;
pub mod sim;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Inference-aware gateway: each request goes where the KV cache it can reuse already is.
#[derive(Debug, Parser)]
#[command(name = "emberlane", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(serve::ServeArgs),
    /// Check a configuration file and print what it resolves to.
    Check(check::CheckArgs),
    /// Ask a running gateway where a request would go, and why.
    Explain(explain::ExplainArgs),
    /// Run a small fleet, a gateway and traffic in this process, and watch what is reused.
    Demo(demo::DemoArgs),
    /// Simulate a fleet: policies side by side, on traces or generated workloads.
    Sim(Box<sim::SimArgs>),
    /// Run the sidecar beside an engine: read its load, send it to gateways.
    Agent(agent::AgentArgs),
    /// Run stand-in engines for tests and benchmarks.
    MockEngine(mock_engine::MockEngineArgs),
}

impl Cli {
    /// Runs the subcommand.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Serve(args) => serve::run(args),
            Command::Check(args) => check::run(&args),
            Command::Explain(args) => explain::run(&args),
            Command::Demo(args) => demo::run(&args),
            Command::Sim(args) => sim::run(&args),
            Command::Agent(args) => agent::run(&args),
            Command::MockEngine(args) => mock_engine::run(&args),
        }
    }
}
