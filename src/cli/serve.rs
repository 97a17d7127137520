//! `emberlane serve`: the gateway, from a file or from flags alone.

use super::check;
use crate::config::{self, Config, Flags, PolicyName};
use crate::gateway::{Gateway, Reload, RunOptions};
use crate::telemetry;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `emberlane serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Configuration file (YAML). SIGHUP reads it again.
    #[arg(short, long, value_name = "FILE", env = "EMBERLANE_CONFIG")]
    config: Option<PathBuf>,
    /// Where clients connect; overrides the file.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where people and Prometheus connect, or `off`; overrides the file.
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// An engine, such as http://10.0.0.1:8000; repeat for each. Replaces the file's.
    #[arg(long = "replica", value_name = "URL")]
    replicas: Vec<String>,
    /// How a replica is chosen, by name: price, weighted, least_request, round_robin, ...; the README lists all.
    #[arg(long, value_name = "NAME")]
    policy: Option<PolicyName>,
    /// Where load reports (beacons) are received; repeat for each. Replaces the file's.
    #[arg(long, value_name = "ADDR")]
    beacons: Vec<String>,
    /// File of the keys of beacons, or `off`; overrides the file.
    #[arg(long, value_name = "FILE")]
    beacon_keys: Option<String>,
    /// A watched file that lists replicas; overrides the file.
    #[arg(long, value_name = "FILE")]
    discovery_file: Option<String>,
    /// A name each of whose addresses is a replica: NAME:PORT, or NAME for SRV records; repeat for each. Replaces the
    /// file's.
    #[arg(long, value_name = "NAME[:PORT]")]
    dns: Vec<String>,
    /// Take the listening sockets over from a running gateway, which then gets SIGQUIT (binary upgrade).
    #[arg(long)]
    upgrade: bool,
}

/// Runs the gateway until it is told to stop.
#[must_use]
#[expect(clippy::print_stderr, reason = "there is no log yet when the configuration is bad")]
pub fn run(args: ServeArgs) -> ExitCode {
    let config = match load(&args) {
        Ok(config) => config,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    telemetry::log::init(&config.log);
    let pid_file = config.process.pid_file.clone();
    let upgrade = args.upgrade;
    let reload: Option<Reload> = args.config.is_some().then(|| Box::new(move || load(&args)) as Reload);
    let gateway = match Gateway::run(config, RunOptions { upgrade, reload, signals: true }) {
        Ok(gateway) => gateway,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    if let Some(path) = &pid_file
        && let Err(error) = std::fs::write(path, format!("{}\n", std::process::id()))
    {
        tracing::warn!(path = %path.display(), %error, "cannot write the process id");
    }
    tracing::info!(
        listen = %gateway.listen_addr(),
        admin = gateway.admin_addr().map(|address| address.to_string()),
        pid = std::process::id(),
        hash = gateway.core().shared.hasher.kernel().name(),
        "serving"
    );
    gateway.wait();
    remove_own(pid_file.as_deref());
    ExitCode::SUCCESS
}

/// Removes the pid file, unless the next process has written its own.
fn remove_own(pid_file: Option<&Path>) {
    if let Some(path) = pid_file
        && std::fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string())
    {
        // It names a process that is gone: harmless if it stays.
        let _left = std::fs::remove_file(path);
    }
}

/// The configuration that the arguments give. Read again, whole, at each reload.
fn load(args: &ServeArgs) -> Result<Config, String> {
    let flags = Flags {
        listen: args.listen.clone().into_iter().collect(),
        admin: args.admin.clone(),
        replicas: args.replicas.clone(),
        policy: args.policy,
        beacons: args.beacons.clone(),
        beacon_keys: args.beacon_keys.clone(),
        discovery_file: args.discovery_file.clone(),
        dns: args.dns.clone(),
    };
    match &args.config {
        Some(path) => check::load(path, &flags).map_err(|error| error.to_string()),
        None => config::from_flags(&flags).and_then(check::with_its_files).map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            format!("{}\n\nGive a file with -c FILE, or at least one --replica URL.", lines.join("\n"))
        }),
    }
}
