//! `emberlane mock-engine`: one or more mock engines until a signal ends them.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::mock::{Faults, MockEngine, MockEngineConfig};

/// Run mock engines: replicas with a real block cache and timed prefill and decode, and no model.
#[derive(Clone, Debug, clap::Args)]
pub struct MockEngineArgs {
    /// Where the first one listens; port 0 takes free ones.
    #[arg(long, default_value = "127.0.0.1:9101", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// How many, on consecutive ports.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub count: u16,
    /// A model it serves (may be repeated; the default is `mock`).
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// Serve any model name.
    #[arg(long, conflicts_with = "models")]
    pub any_model: bool,
    /// Requests run at once.
    #[arg(long, default_value_t = 256)]
    pub slots: u32,
    /// Tokens the cache holds.
    #[arg(long, default_value_t = 400_000)]
    pub kv_tokens: u64,
    /// Tokens of one cache block.
    #[arg(long, default_value_t = 16)]
    pub block_tokens: u32,
    /// Tokens prefilled a second; 0 takes no time.
    #[arg(long, default_value_t = 0.0)]
    pub prefill_tokens_per_s: f64,
    /// Time each prefill takes beside that, milliseconds.
    #[arg(long, default_value_t = 0.0, value_parser = milliseconds)]
    pub prefill_base_ms: f64,
    /// Time of one output token, alone, milliseconds.
    #[arg(long, default_value_t = 0.0, value_parser = milliseconds)]
    pub decode_step_ms: f64,
    /// Time each running request adds to an output token, milliseconds.
    #[arg(long, default_value_t = 0.0, value_parser = milliseconds)]
    pub decode_per_request_ms: f64,
    /// Bytes of a token.
    #[arg(long, default_value_t = 4.0)]
    pub bytes_per_token: f64,
    /// Send a stream's head before the prefill.
    #[arg(long)]
    pub early_head: bool,
    /// What it does wrong, `KEY=VALUE` (may be repeated): status, `retry_after_s`, `head_delay_ms`, hang, close
    /// (head, body or mid), `close_after_chunks`, garbage; rate and times say how often.
    #[arg(long = "fault", value_name = "KEY=VALUE")]
    pub faults: Vec<String>,
}

/// A length of time that [`Duration`] can hold.
fn milliseconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=86_400_000.0).contains(&value) { Ok(value) } else { Err("between 0 and 86400000".to_owned()) }
}

impl MockEngineArgs {
    /// The engine at `index` of `count`.
    fn config(&self, index: u16, faults: Faults) -> Option<MockEngineConfig> {
        let mut listen = self.listen;
        if listen.port() != 0 {
            listen.set_port(listen.port().checked_add(index)?);
        }
        let models = match (self.any_model, self.models.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => MockEngineConfig::default().models,
            (false, false) => self.models.clone(),
        };
        Some(MockEngineConfig {
            listen,
            id: String::new(),
            models,
            slots: self.slots,
            kv_tokens: self.kv_tokens,
            block_tokens: self.block_tokens,
            prefill_tokens_per_s: self.prefill_tokens_per_s,
            prefill_base: Duration::from_secs_f64(self.prefill_base_ms / 1e3),
            decode_step: Duration::from_secs_f64(self.decode_step_ms / 1e3),
            decode_per_request: Duration::from_secs_f64(self.decode_per_request_ms / 1e3),
            bytes_per_token: self.bytes_per_token,
            is_head_early: self.early_head,
            faults,
        })
    }

    fn start(&self) -> Result<Vec<MockEngine>, String> {
        let faults = Faults::from_settings(&self.faults).map_err(|error| error.to_string())?;
        (0..self.count)
            .map(|index| {
                let config = self.config(index, faults.clone()).ok_or("--count goes beyond port 65535")?;
                let listen = config.listen;
                MockEngine::start(config).map_err(|error| format!("{listen}: {error}"))
            })
            .collect()
    }
}

/// Runs until SIGINT or SIGTERM. Prints one line an engine once it takes connections.
#[must_use]
pub fn run(args: &MockEngineArgs) -> ExitCode {
    match args.start().and_then(|engines| announce(&engines).map_err(|error| error.to_string()).map(|()| engines)) {
        Ok(engines) => {
            let ended = wait_for_stop();
            drop(engines);
            ended.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            // Nowhere is left to tell of a closed stderr.
            let _ = writeln!(std::io::stderr(), "emberlane mock-engine: {error}");
            ExitCode::FAILURE
        }
    }
}

fn announce(engines: &[MockEngine]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for engine in engines {
        writeln!(out, "mock engine on http://{}", engine.addr())?;
    }
    out.flush()
}

/// Returns at SIGINT or SIGTERM.
fn wait_for_stop() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parse(args: &[&str]) -> Result<MockEngineArgs, clap::Error> {
        let command = MockEngineArgs::augment_args(clap::Command::new("mock-engine").no_binary_name(true));
        command.try_get_matches_from(args).and_then(|matches| MockEngineArgs::from_arg_matches(&matches))
    }

    #[test]
    fn flags_become_a_configuration() {
        let args = parse(&[
            "--listen",
            "127.0.0.1:9200",
            "--model",
            "a",
            "--model",
            "b",
            "--decode-step-ms",
            "2.5",
            "--fault",
            "status=503",
        ])
        .unwrap();
        let faults = Faults::from_settings(&args.faults).unwrap();
        let config = args.config(3, faults).unwrap();
        assert_eq!((config.listen.port(), config.models.len()), (9203, 2));
        assert_eq!((config.decode_step, config.faults.status), (Duration::from_micros(2_500), Some(503)));
        assert_eq!(parse(&[]).unwrap().config(0, Faults::default()).unwrap().models, ["mock"]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(&["--decode-step-ms", "-1"]).is_err());
        assert!(parse(&["--decode-step-ms", "NaN"]).is_err());
        assert!(parse(&["--count", "0"]).is_err());
        assert!(parse(&["--listen", "127.0.0.1:65535", "--count", "2"]).unwrap().start().is_err());
        assert!(parse(&["--fault", "oops=1"]).unwrap().start().is_err());
    }

    #[test]
    fn many_start_on_free_ports() {
        let engines = parse(&["--listen", "127.0.0.1:0", "--count", "3"]).unwrap().start().unwrap();
        let ports: std::collections::BTreeSet<u16> = engines.iter().map(|engine| engine.addr().port()).collect();
        assert_eq!(ports.len(), 3);
    }
}
