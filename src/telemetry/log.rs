//! Logs: structured lines to standard error, JSON or text.

use crate::config::{LogConfig, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Sends `tracing` (and, through it, Pingora's `log`) to standard error as `config` says. The environment variable
/// `EMBERLANE_LOG` wins over the configured level. Later calls change nothing.
pub fn init(config: &LogConfig) {
    let filter = EnvFilter::try_from_env("EMBERLANE_LOG")
        .or_else(|_| EnvFilter::try_new(format!("{},pingora_core=warn,pingora_runtime=warn", config.level)))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    // A second server in one process (tests, demo) finds logging set up already.
    let _already = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.try_init(),
    };
}
