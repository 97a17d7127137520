//! Rules of the house that no lint knows: layers import only downward, files say what they are and stay short, unsafe
//! code keeps to its few modules, nothing unfinished, nothing that is true of one machine only.

use std::path::{Path, PathBuf};

use crate::support::root;

/// Longest file, lines.
const LINES_MAX: usize = 600;

/// The layer of each top-level module of `src/`; a layer imports only from those at or below its own place.
/// Binaries' roots (`lib`, `main`) stand above all.
const LAYERS: [(&str, &[&str]); 5] = [
    ("base", &["id", "reject", "clock", "rng", "sync"]),
    ("data", &["parse", "wire", "config", "engine"]),
    ("state", &["prefix", "load", "discovery", "health", "fleet"]),
    ("decide", &["pipeline", "admission", "price", "policy", "models", "session", "learn"]),
    ("edge", &["cli", "gateway", "admin", "proxy", "mock", "demo", "agent", "telemetry", "sim"]),
];

/// Where unsafe code may stand: prefixes of paths under `src/`.
const UNSAFE_ALLOWED: [&str; 7] =
    ["prefix/hash", "prefix/index", "prefix/memory", "load/udp", "load/xdp", "sync", "parse/memory"];

/// Rank of a top-level module; roots are above every layer.
fn rank(module: &str) -> Option<usize> {
    if module == "lib" || module == "main" {
        return Some(LAYERS.len());
    }
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

/// Files below `directory` whose names end in `suffix`, sorted.
fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().map_while(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// All Rust files of the project.
fn rust_files() -> Vec<PathBuf> {
    ["src", "tests", "benches", "perf"].iter().flat_map(|directory| files(&root().join(directory), ".rs")).collect()
}

/// A path as people write it.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// A line without its comment; strings are left as they are.
fn code(line: &str) -> &str {
    if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap_or(line) }
}

/// The top-level modules that a line of code names after `prefix` (`crate::` or `emberlane::`), braces included.
fn named_modules<'l>(line: &'l str, prefix: &str) -> Vec<&'l str> {
    let word = |text: &'l str| {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        text.split_at(end).0
    };
    let mut modules = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        let rest = line.split_at(at + prefix.len()).1;
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(group.split(',').map(|item| word(item.trim_start()))),
            None => modules.push(word(rest)),
        }
    }
    modules.retain(|module| module.starts_with(|c: char| c.is_ascii_lowercase()));
    modules
}

/// Fails with every finding at once.
#[track_caller]
fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn layers_import_only_downward() {
    let mut findings = Vec::new();
    for path in files(&root().join("src"), ".rs") {
        let name = shown(&path);
        let module = name.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        let Some(own) = rank(&module) else {
            findings.push(format!("{name}: module `{module}` has no layer; list it in LAYERS"));
            continue;
        };
        let prefix = if module == "main" { "emberlane::" } else { "crate::" };
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            for other in named_modules(code(line), prefix) {
                match rank(other) {
                    Some(rank) if rank > own => {
                        findings.push(format!("{name}:{}: {module} imports {other}, a layer above it", number + 1));
                    }
                    Some(_) => {}
                    None => findings.push(format!("{name}:{}: `{other}` has no layer", number + 1)),
                }
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn import_paths_are_read_in_all_their_forms() {
    assert_eq!(named_modules("use crate::parse::Api;", "crate::"), ["parse"]);
    assert_eq!(named_modules("use crate::{id::PoolId, reject};", "crate::"), ["id", "reject"]);
    assert_eq!(named_modules("    let x = crate::clock::Clock::new(crate::id::A);", "crate::"), ["clock", "id"]);
    assert_eq!(named_modules("pub(crate) use self::x;", "crate::"), Vec::<&str>::new());
    assert_eq!(code("let a = 1; // crate::proxy"), "let a = 1;");
    assert_eq!(code("/// [`crate::proxy`]"), "");
    assert!(rank("cli") > rank("pipeline") && rank("pipeline") > rank("prefix") && rank("prefix") > rank("id"));
}

#[test]
fn files_say_what_they_are_and_stay_short() {
    let mut findings = Vec::new();
    for path in rust_files() {
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.starts_with("//! ") {
            findings.push(format!("{}: does not begin with `//!`: say what it is and why it exists", shown(&path)));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            findings.push(format!("{}: {lines} lines, more than {LINES_MAX}", shown(&path)));
        }
        if path.ends_with("mod.rs") {
            findings.push(format!("{}: use `foo.rs` beside `foo/`", shown(&path)));
        }
    }
    assert_none(&findings);
}

#[test]
fn nothing_is_left_unfinished() {
    // Written in two halves, so that this file does not find itself.
    let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME"), concat!("TO", "DO")];
    let mut findings = Vec::new();
    for path in rust_files() {
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                findings.push(format!("{}:{}: {word}", shown(&path), number + 1));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn unsafe_code_keeps_to_its_modules() {
    let mut findings = Vec::new();
    for path in files(&root().join("src"), ".rs") {
        let name = shown(&path);
        let inner = name.trim_start_matches("src/");
        if UNSAFE_ALLOWED.iter().any(|allowed| inner.starts_with(allowed)) {
            continue;
        }
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let words = code(line).split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            if words.clone().any(|word| word == "unsafe") {
                findings.push(format!("{name}:{}: unsafe code outside its modules", number + 1));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn nothing_in_the_tree_is_true_of_one_machine_only() {
    let forbidden = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/tmp/", "wt")];
    let mut findings = Vec::new();
    let listed = std::process::Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output();
    let tracked = match &listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => return, // a source archive without git
    };
    for name in tracked.split('\0').filter(|name| !name.is_empty() && *name != "Cargo.lock") {
        let Ok(text) = std::fs::read_to_string(root().join(name)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = forbidden.iter().find(|word| line.contains(**word)) {
                findings.push(format!("{name}:{}: holds {word}", number + 1));
            }
        }
    }
    assert_none(&findings);
}
