//! `emberlane agent`: the sidecar beside an engine, from a file or from flags alone.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::agent::config::{AgentConfig, AgentFlags, parse};
use crate::agent::{once, run as run_agent};
use crate::config::{LogConfig, TEXT_BYTES_MAX};
use crate::telemetry;

/// Read an engine's load from its metrics page and send it to gateways, in beacons.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Settings (YAML), such as conf/agent.yaml; flags go first.
    #[arg(short, long, value_name = "FILE", env = "EMBERLANE_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// The engine: auto, vllm, sglang, trtllm, triton, llamacpp or custom (needs a file).
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Its metrics page, such as http://127.0.0.1:8000/metrics.
    #[arg(long, value_name = "URL")]
    metrics: Option<String>,
    /// Where it is asked for its models. Default: the server of --metrics.
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// Where gateways reach it, such as http://10.0.0.1:8000.
    #[arg(long, value_name = "URL")]
    replica_url: Option<String>,
    /// Its id in the gateways' configuration. Default: host:port of --replica-url.
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Where beacons go: addresses, names or multicast groups, with ports.
    #[arg(long = "gateway", value_name = "ADDR", value_delimiter = ',')]
    gateways: Vec<String>,
    /// Looks and beacons a second. Default: 20.
    #[arg(long, value_name = "N")]
    hz: Option<String>,
    /// Keys that sign the beacons; SIGHUP reads them again.
    #[arg(long, value_name = "FILE")]
    key_file: Option<String>,
    /// The interface multicast leaves by: its name or an address of it.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Routers multicast may pass. Default: 1.
    #[arg(long, value_name = "N")]
    ttl: Option<String>,
    /// Publishers of KV events, such as tcp://127.0.0.1:5557 (tcp://*:5557: the engine connects).
    #[arg(long, value_name = "ENDPOINT", value_delimiter = ',')]
    kv_events: Vec<String>,
    /// A label for people, such as zone=a (may be repeated).
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Look once, print what the page says and what a beacon would, and end.
    #[arg(long)]
    once: bool,
}

impl AgentArgs {
    fn flags(&self) -> AgentFlags {
        AgentFlags {
            engine: self.engine.clone(),
            metrics: self.metrics.clone(),
            api: self.api.clone(),
            replica_url: self.replica_url.clone(),
            id: self.id.clone(),
            gateways: self.gateways.clone(),
            hz: self.hz.clone(),
            key_file: self.key_file.clone(),
            interface: self.interface.clone(),
            ttl: self.ttl.clone(),
            kv_events: self.kv_events.clone(),
            labels: self.labels.clone(),
        }
    }

    fn load(&self) -> Result<AgentConfig, String> {
        let text = match &self.config {
            Some(path) => Some(read(path).map_err(|error| format!("{}: {error}", path.display()))?),
            None => None,
        };
        let file = self.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        parse(text.as_deref(), &self.flags()).map_err(|errors| {
            let lines = errors.iter().map(|error| match error.line {
                0 => error.to_string(),
                line => format!("{file}:{line}:{}: {}: {}", error.column, error.path, error.message),
            });
            lines.collect::<Vec<_>>().join("\n")
        })
    }
}

/// A file's text, as far as a configuration may be long: a longer one is refused by who reads it.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Runs until it is told to stop; exits 0 then.
#[must_use]
pub fn run(args: &AgentArgs) -> ExitCode {
    let outcome = args.load().and_then(|config| {
        if args.once {
            let text = once(&config).map_err(|error| error.to_string())?;
            return std::io::stdout().lock().write_all(text.as_bytes()).map_err(|error| error.to_string());
        }
        telemetry::log::init(&LogConfig::default());
        run_agent(config).map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr().lock(), "{error}");
            ExitCode::FAILURE
        }
    }
}
