//! The command line as a person meets it: the demonstration, the checked examples, and mistakes told in plain words.

use std::process::{Command, Output};
use std::time::Duration;

use crate::support::process::Process;
use crate::support::{free_address, root};

fn emberlane(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_emberlane")).args(arguments).output().unwrap()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_demonstration_runs_to_its_end() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
    command.args(["demo", "--seconds", "3", "--listen", &free_address().to_string()]);
    let mut demo = Process::start("emberlane demo", &mut command);
    let status = demo.wait(Duration::from_secs(30));
    assert!(status.success(), "{status}:\n{}", demo.output());
    let output = demo.output();
    assert!(output.contains("price") && output.to_lowercase().contains("round"), "{output}");
}

#[test]
fn the_examples_in_conf_are_valid() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("conf")).unwrap().map_while(Result::ok) {
        let path = entry.path();
        // The agent's settings are the agent's to read: it has a test of its own.
        let is_agents = path.file_name().is_some_and(|name| name == "agent.yaml");
        if path.extension().is_some_and(|extension| extension == "yaml") && !is_agents {
            seen += 1;
            let output = emberlane(&["check", "-c", path.to_str().unwrap()]);
            assert!(output.status.success(), "{}: {}", path.display(), told(&output));
        }
    }
    assert!(seen >= 2, "{seen} examples");
}

#[test]
fn every_mistake_in_a_file_is_told_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "listen: [\"nowhere\"]\nreplicas:\n  - url: ftp://x\nno_such_field: 1\n").unwrap();
    for command in ["check", "serve"] {
        let output = emberlane(&[command, "-c", file.path().to_str().unwrap()]);
        assert!(!output.status.success(), "{command} took it");
        let told = told(&output);
        for place in ["listen", "replicas[0].url", "no_such_field", ":4:1"] {
            assert!(told.contains(place), "{command} does not name {place}:\n{told}");
        }
    }
}

#[test]
fn mistakes_on_the_command_line_are_told() {
    for arguments in [
        &["serve"][..],
        &["serve", "--replica", "not a url"],
        &["serve", "--replica", "http://127.0.0.1:1", "--policy", "no_such_policy"],
        &["serve", "-c", "/no/such/file.yaml"],
        &["no-such-command"],
    ] {
        let output = emberlane(arguments);
        assert!(!output.status.success(), "{arguments:?} was taken");
        assert!(told(&output).len() > 20 && !told(&output).contains("panicked"), "{arguments:?}: {}", told(&output));
    }
}

#[test]
fn mistakes_in_simulations_are_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "scenarios:\n- {name: a, claims: [{claim: b, measure: ttft}]}\n").unwrap();
    let suite = file.path().to_str().unwrap();
    for (arguments, parts) in [
        (&["sim", "--policy", "pricy"][..], &["`pricy` is no policy", "least_request", "did you mean `price`?"][..]),
        (&["sim", "--load", "0", "--seeds", "0"], &["loads: 0 is out of range", "seeds: "]),
        (&["sim", "--scenario", "/no/such.yaml"], &["/no/such.yaml"]),
        (&["sim", "--suite", suite], &[":2:", "claims[0].measure", "ttft_p50_s"]),
        (&["sim", "--suite", suite, "--load", "2"], &["cannot be used with"]),
    ] {
        let output = emberlane(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        for part in parts {
            assert!(told(&output).contains(part), "{arguments:?} does not say {part}:\n{}", told(&output));
        }
    }
    assert!(told(&emberlane(&["sim", "--help"])).contains("Examples:"));
}

#[test]
fn a_taken_port_is_told() {
    let listener = std::net::TcpListener::bind(free_address()).unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let admin = free_address().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
    command.args(["serve", "--listen", &taken, "--admin", &admin, "--replica", "http://127.0.0.1:9"]);
    let mut gateway = Process::start("emberlane", &mut command);
    let status = gateway.wait(Duration::from_secs(10));
    assert!(!status.success(), "it serves on a port that is taken");
    assert!(gateway.output().contains(&taken), "the address is not named:\n{}", gateway.output());
}
