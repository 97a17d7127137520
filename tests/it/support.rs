//! What the integration tests share: processes that end with their test, a scripted backend, raw HTTP clients.

pub(crate) mod backend;
pub(crate) mod dns;
pub(crate) mod engine;
pub(crate) mod gateway;
pub(crate) mod h2c;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod pages;
pub(crate) mod process;
pub(crate) mod time;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The package's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A path under `target/`, where `./x` puts what it makes.
pub(crate) fn target(path: &str) -> PathBuf {
    root().join("target").join(path)
}

/// True where a missing feature is a failure and not a skip.
pub(crate) fn must_run() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// Says that a test did not run, and why; fails instead where it must run.
pub(crate) fn skip(reason: &str) {
    assert!(!must_run(), "this must run here: {reason}");
    eprintln!("SKIP {reason}");
}

/// A loopback address that nothing listens on. Below the range the kernel takes for outgoing connections, and apart
/// for each test process, so that two tests do not meet.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let slice = std::process::id() % 200;
    for _ in 0..200 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + slice * 100 + (step % 100);
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port among 100");
}

/// FNV-1a of `bytes`: a checksum to print beside a length when two bodies differ.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `length` bytes of harmless text that differ for each `seed`.
pub(crate) fn text(seed: u64, length: usize) -> String {
    const WORDS: [&str; 16] = [
        "river", "engine", "north", "cache", "paper", "seven", "quiet", "light", "stone", "prefix", "garden", "token",
        "winter", "signal", "copper", "evening",
    ];
    let mut random = fastrand::Rng::with_seed(seed);
    let mut out = String::with_capacity(length + 16);
    while out.len() < length {
        out.push_str(WORDS[random.usize(..WORDS.len())]);
        out.push(' ');
    }
    out.truncate(length);
    out
}

/// A chat request for model `m`.
pub(crate) fn chat(content: &str) -> String {
    serde_json::json!({ "model": "m", "max_tokens": 4, "messages": [{ "role": "user", "content": content }] })
        .to_string()
}

/// A streamed chat request for model `m`.
pub(crate) fn chat_stream(content: &str) -> String {
    serde_json::json!({
        "model": "m", "max_tokens": 64, "stream": true, "messages": [{ "role": "user", "content": content }]
    })
    .to_string()
}

/// A chat request for model `m` whose `system` message others may share.
pub(crate) fn chat_with_system(system: &str, content: &str, stream: bool) -> String {
    serde_json::json!({
        "model": "m", "max_tokens": 4, "stream": stream,
        "messages": [{ "role": "system", "content": system }, { "role": "user", "content": content }]
    })
    .to_string()
}
