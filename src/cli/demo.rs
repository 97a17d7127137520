//! `emberlane demo`: the whole thing on one machine, with engines of its own.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{Config, PolicyName};
use crate::demo::{self, DemoOptions, RunningGateway};
use crate::gateway::Gateway;

/// Run gateways over mock engines in this process and watch what routing does to the same traffic.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Replicas behind each of the two gateways.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=64))]
    pub replicas: u16,
    /// Where the gateway listens; it serves your requests too while the demo runs.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Where its metrics and decisions are; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub admin: SocketAddr,
    /// How long, in seconds; 0 is until Ctrl-C.
    #[arg(long, default_value_t = 20)]
    pub seconds: u32,
    /// The policy to compare with round robin.
    #[arg(long, default_value = "price", value_name = "NAME")]
    pub policy: PolicyName,
}

/// Runs the demo.
#[must_use]
pub fn run(args: &DemoArgs) -> ExitCode {
    let options = DemoOptions {
        replicas: args.replicas,
        listen: args.listen,
        admin: args.admin,
        duration: (args.seconds > 0).then(|| Duration::from_secs(u64::from(args.seconds))),
        policy: args.policy,
        ..DemoOptions::default()
    };
    let stdout = std::io::stdout();
    let is_terminal = stdout.is_terminal();
    let start = |config: Config| match Gateway::start(config) {
        Ok(gateway) => Ok(Box::new(gateway) as Box<dyn RunningGateway>),
        Err(error) => Err(error.to_string()),
    };
    match demo::run(&options, &start, &mut stdout.lock(), is_terminal) {
        Ok(_report) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere is left to tell of a closed stderr.
            let _ = writeln!(std::io::stderr(), "emberlane demo: {error}");
            ExitCode::FAILURE
        }
    }
}

impl RunningGateway for Gateway {
    fn listen_addr(&self) -> SocketAddr {
        Self::listen_addr(self)
    }

    fn admin_addr(&self) -> Option<SocketAddr> {
        Self::admin_addr(self)
    }
}
