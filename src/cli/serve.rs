//! `emberlane serve`: the gateway, from a file or from flags alone.

use crate::config::{self, Config, ConfigError, PolicyName};
use crate::proxy::{Gateway, RunOptions, reload_from};
use crate::telemetry;
use clap::Args;
use std::net::SocketAddr;
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
    listen: Option<SocketAddr>,
    /// Where people and Prometheus connect; overrides the file.
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// An engine, such as http://10.0.0.1:8000; repeat for each. Replaces the file's.
    #[arg(long = "replica", value_name = "URL")]
    replicas: Vec<String>,
    /// How a replica is chosen: price, weighted, least_request, round_robin, power_of_two, sticky or random.
    #[arg(long, value_name = "NAME")]
    policy: Option<PolicyName>,
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
        Err(lines) => {
            eprintln!("{lines}");
            return ExitCode::FAILURE;
        }
    };
    telemetry::log::init(&config.log);
    let pid_file = config.process.pid_file.clone();
    let upgrade = args.upgrade;
    let reload = args.config.clone().map(|path| {
        let again = args.clone();
        reload_from(path, move |config| overridden(config, &again))
    });
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
        hash = gateway.core().shared.hasher.kernel().as_str(),
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

fn load(args: &ServeArgs) -> Result<Config, String> {
    let Some(path) = &args.config else {
        let policy = args.policy.unwrap_or_default();
        return config::from_flags(args.listen, args.admin, &args.replicas, policy).map_err(|errors| {
            format!("{}\n\nGive a file with -c FILE, or at least one --replica URL.", lines("", &errors))
        });
    };
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let config = config::parse(&text).map_err(|errors| lines(&path.display().to_string(), &errors))?;
    let replicas = config::replicas_from_flags(&args.replicas).map_err(|errors| lines("--replica", &errors))?;
    let mut config = overridden(config, args);
    if !replicas.is_empty() {
        config.replicas = replicas;
    }
    Ok(config)
}

/// `config` with what the command line says instead.
fn overridden(mut config: Config, args: &ServeArgs) -> Config {
    if let Some(listen) = args.listen {
        config.listen = vec![listen];
    }
    if let Some(admin) = args.admin {
        config.admin = Some(admin);
    }
    if let Some(policy) = args.policy {
        config.policy.name = policy;
    }
    if let Ok(replicas) = config::replicas_from_flags(&args.replicas)
        && !replicas.is_empty()
    {
        config.replicas = replicas;
    }
    config
}

fn lines(place: &str, errors: &[ConfigError]) -> String {
    let line = |error: &ConfigError| if place.is_empty() { error.to_string() } else { format!("{place}: {error}") };
    errors.iter().map(line).collect::<Vec<_>>().join("\n")
}
