//! Tests of the command with a runner that makes its results up.

use clap::Parser as _;

use super::*;
use crate::sim::report::fake::FakeRunner;

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    sim: SimArgs,
}

fn parse(arguments: &[&str]) -> SimArgs {
    Command::try_parse_from(["sim", "--quiet"].iter().chain(arguments)).unwrap().sim
}

fn printed(arguments: &[&str]) -> String {
    let mut out = Vec::new();
    compare(&parse(arguments), &FakeRunner::default(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    compare(&parse(arguments), &FakeRunner::default(), &mut Vec::new()).unwrap_err().to_string()
}

#[test]
fn lists_are_split_outside_parentheses() {
    let args =
        parse(&["--policy", "price, weighted(prefix=3,queue=5),sticky", "--policy", "random", "--load", "1,2.5"]);
    let scenario = scenario(&args).unwrap();
    assert_eq!(scenario.policies, ["price", "weighted(prefix=3,queue=5)", "sticky", "random"]);
    assert_eq!(scenario.loads, [1.0, 2.5]);
}

#[test]
fn flags_go_before_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "replicas: 4\nmodel: qwen3-32b\nloads: [7]\nbeacons: {loss: 10%}\n").unwrap();
    let path = file.path().to_str().unwrap();
    let args = parse(&["--scenario", path, "--replicas", "16", "--beacon-delay", "1", "--seed", "9", "--seeds", "2"]);
    let found = scenario(&args).unwrap();
    assert_eq!((found.replicas, found.model.as_str(), found.first_seed, found.seeds), (16, "qwen3-32b", 9, 2));
    assert_eq!((found.beacon_delay_s, found.beacon_loss, found.loads), (1.0, 0.1, vec![7.0]));
    std::fs::write(file.path(), "replica: 4\n").unwrap();
    let told = refused(&["--scenario", path]);
    assert!(told.contains(":1:1: replica: unknown field; did you mean `replicas`?"), "{told}");
    assert!(refused(&["--scenario", "/no/such.yaml"]).starts_with("/no/such.yaml: "));
}

#[test]
fn json_is_one_object_a_run_in_order() {
    let arguments = ["--json", "--policy", "price,least_request", "--load", "2,4", "--seeds", "3"];
    let lines = printed(&arguments);
    let runs: Vec<RunResult> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(runs.len(), 12);
    let order: Vec<(u64, &str)> = runs.iter().map(|run| (run.seed, run.policy.as_str())).collect();
    assert_eq!(order[..3], [(1, "price"), (1, "least_request"), (2, "price")]);
    assert_eq!(lines, printed(&[&arguments[..], &["--jobs", "7"]].concat()));
    assert!(printed(&[&arguments[..], &["--variant", "index_off"]].concat()).contains("\"variant\":\"index_off\""));
}

#[test]
fn a_table_is_printed_and_a_page_written() {
    let page = tempfile::NamedTempFile::new().unwrap();
    let table = printed(&["--html", page.path().to_str().unwrap(), "--load", "2", "--seeds", "3"]);
    assert!(table.contains("load 2") && table.contains("% against price") && table.contains('*'), "{table}");
    assert!(std::fs::read_to_string(page.path()).unwrap().contains("role='img'"));
    assert!(refused(&["--html", "/no/such/page.html"]).starts_with("/no/such/page.html: "));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "output: html\nseeds: 2\n").unwrap();
    assert!(printed(&["--scenario", file.path().to_str().unwrap()]).starts_with("<!doctype html>"));
}

#[test]
fn tuning_tells_what_is_best() {
    let mut out = Vec::new();
    let args = parse(&["--tune", "--policy", "round_robin,chwbl", "--load", "2", "--seeds", "2"]);
    tune::run(&args, &FakeRunner::default(), &mut out).unwrap();
    let told = String::from_utf8(out).unwrap();
    assert!(told.contains("chwbl(load_factor=2)") && told.contains("\ntuned: ["), "{told}");
    assert!(!told.contains("round_robin"), "it has no parameters: {told}");
    for arguments in [&["--tune", "--json"][..], &["--split", "half"], &["--tune", "--split", "test"]] {
        assert!(Command::try_parse_from(["sim"].iter().chain(arguments)).is_err(), "{arguments:?}");
    }
    let args = parse(&["--fleet", "4*llama-3.1-8b,4*llama-3.1-8b(speed=0.5)", "--split", "test"]);
    let found = scenario(&args).unwrap();
    assert_eq!((found.replicas, found.fleet.len(), found.split), (8, 2, Split::Test));
    assert!(refused(&["--fleet", "4*llama-3.1-8b(sped=1)"]).contains("--fleet[0].sped: unknown field"));
}

#[test]
fn what_is_wrong_is_told_at_once() {
    let told = refused(&["--policy", "pricy,price", "--load", "0", "--warm-up", "9000"]);
    for part in ["`pricy` is no policy", "least_request", "oracle", "did you mean `price`?", "loads: 0", "warm_up: "] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    let told = refused(&["--seeds", "100000", "--load", "1,2,3"]);
    assert!(told.contains("at most 199999 runs"), "{told}");
    for arguments in [&["--suite", "a.yaml", "--json"][..], &["--quick"], &["--load", "x"], &["--replicas", "-1"]] {
        assert!(Command::try_parse_from(["sim"].iter().chain(arguments)).is_err(), "{arguments:?}");
    }
}

#[test]
fn help_has_examples() {
    let help = <Command as clap::CommandFactory>::command().render_long_help().to_string();
    assert!(help.contains("Examples:") && help.contains("--suite perf/scheduling.yaml"), "{help}");
}
