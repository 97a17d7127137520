//! `emberlane explain`: where a running gateway would send a request now, and what each choice would cost.

use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Largest body read from a file.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// Largest answer read from the gateway.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Arguments of `emberlane explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The request's body (JSON); `-` is standard input.
    #[arg(long, value_name = "FILE")]
    body: PathBuf,
    /// The route it would be sent to.
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// The gateway's admin listener: an address or a URL.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin: String,
    /// Session the request would belong to.
    #[arg(long)]
    session: Option<String>,
    /// Print the whole decision as JSON.
    #[arg(long)]
    json: bool,
}

/// Asks the gateway and prints what it says.
#[must_use]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]
pub fn run(args: &ExplainArgs) -> ExitCode {
    match ask(args) {
        Ok(decision) if args.json => println!("{decision:#}"),
        Ok(decision) => println!("{}", in_words(&decision)),
        Err(message) => {
            eprintln!("explain: {message}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn ask(args: &ExplainArgs) -> Result<Value, String> {
    let body = read(&args.body).map_err(|error| format!("{}: {error}", args.body.display()))?;
    let base = if args.admin.contains("://") { args.admin.clone() } else { format!("http://{}", args.admin) };
    let mut request = ureq::post(format!("{}/explain", base.trim_end_matches('/'))).query("path", &args.path);
    if let Some(session) = &args.session {
        request = request.query("session", session);
    }
    let sent = request.config().http_status_as_error(false).build().send(&body);
    let mut answer = sent.map_err(|error| {
        format!("{base}: {error}; is the gateway running, and is this its admin listener (--admin ADDR)?")
    })?;
    let status = answer.status();
    let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let text = text.map_err(|error| format!("{base}: {error}"))?;
    let value: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    if status.is_success() && value.is_object() {
        return Ok(value);
    }
    let message = value["error"]["message"].as_str().map(str::to_owned);
    Err(message.unwrap_or_else(|| format!("{status}: {}", String::from_utf8_lossy(&text).trim())))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut body = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(BODY_BYTES_MAX).read_to_end(&mut body)?;
    } else {
        std::fs::File::open(path)?.take(BODY_BYTES_MAX).read_to_end(&mut body)?;
    }
    Ok(body)
}

fn in_words(decision: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut out = format!(
        "{} ({}, policy {})\n{}\n",
        text(&decision["chosen"]["replica"]),
        text(&decision["reason"]),
        text(&decision["policy"]),
        text(&decision["why"]),
    );
    for (label, key) in [("chosen", "chosen"), ("runner-up", "runner_up"), ("warmest", "warmest")] {
        let choice = &decision[key];
        if choice.is_object() {
            out.push_str(&format!(
                "\n{label:>10}  {:<24} wait {:>9} ms  prefill {:>9} ms  warm {:>7} tokens  in flight {}",
                text(&choice["replica"]),
                choice["wait_ms"],
                choice["prefill_ms"],
                choice["warm_tokens"],
                choice["in_flight"],
            ));
        }
    }
    out
}
