//! The official Python SDKs as clients, through the gateway: every call they have for the routes it serves, before
//! real llama.cpp servers and before mock engines (which also serve what llama.cpp does not).

use std::process::Command;

use crate::support::engine::{Engine, urls};
use crate::support::gateway::Setup;
use crate::support::{root, skip, target};

const MOCK: [&str; 8] =
    ["--slots", "8", "--kv-tokens", "200000", "--prefill-tokens-per-s", "50000", "--decode-step-ms", "1"];

/// Runs one of `tests/sdk/*.py` against the gateway in front of `engines`.
fn run(script: &str, engines: &[Engine], kind: &str) {
    let python = target("venv/bin/python");
    if !python.exists() {
        skip("client SDKs: run ./x setup first");
        return;
    }
    let gateway = Setup::new(&urls(engines)).start();
    let output = Command::new(python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root().join("tests/sdk").join(script))
        .args([format!("http://{}", gateway.listen), kind.to_owned()])
        .output()
        .unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    eprintln!("{told}");
    assert!(output.status.success(), "{script} against {kind}:\n{told}");
    gateway.wait_idle();
}

#[test]
fn openai_calls_before_llama_cpp() {
    if let Some(engines) = Engine::llama(2, 4, 16_384) {
        run("openai_calls.py", &engines, "llama");
    }
}

#[test]
fn anthropic_calls_before_llama_cpp() {
    if let Some(engines) = Engine::llama(2, 4, 16_384) {
        run("anthropic_calls.py", &engines, "llama");
    }
}

#[test]
fn openai_calls_before_mock_engines() {
    run("openai_calls.py", &Engine::mocks(2, &MOCK), "mock");
}

#[test]
fn anthropic_calls_before_mock_engines() {
    run("anthropic_calls.py", &Engine::mocks(2, &MOCK), "mock");
}
