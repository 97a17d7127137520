//! The load plane as a whole: engines, agents and a gateway, each a process; replicas that register themselves; keys that
//! change; pages that the gateway reads itself.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use emberlane::clock::Clock;
use emberlane::wire::beacon::{Facts, Head, Load, Message, SenderId};
use emberlane::wire::key::Keys;
use nix::sys::signal::Signal;

use crate::support::backend::Backend;
use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::time::{now, wait_for};
use crate::support::{chat, text};

const PATH: &str = "/v1/chat/completions";
/// Long enough for any of these to happen, however busy the machine.
const LIMIT: Duration = Duration::from_secs(20);
const KEYS: [&str; 2] = ["7:000102030405060708090a0b0c0d0e0f\n", "8:f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff\n"];

fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An agent beside `engine` that tells the gateway at `beacons`.
fn agent(engine: &Engine, name: &str, beacons: SocketAddr) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
    command.args(["agent", "--engine", name, "--hz", "50"]);
    command.args(["--metrics", &format!("{}/metrics", engine.url()), "--replica-url", &engine.url()]);
    command.args(["--gateway", &beacons.to_string()]);
    Process::start("agent", &mut command)
}

#[track_caller]
fn metric(gateway: &Gateway, name: &str) -> u64 {
    let page = gateway.admin_get("/metrics").text();
    let of = |line: &&str| line.split(['{', ' ']).next() == Some(name);
    page.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Two real llama.cpp servers with an agent each. The gateway knows their load; when one restarts at its address, what
/// it held is forgotten; when an agent is told to stop, its replica drains.
#[test]
fn llama_cpp_servers_with_agents() {
    let Some(mut engines) = Engine::llama(2, 2, 4096) else { return };
    let beacons = free_udp();
    let gateway = Setup::new(&urls(&engines)).yaml(&format!("beacons:\n  listen: \"{beacons}\"")).start();
    let agents: Vec<_> = engines.iter().map(|engine| agent(engine, "llamacpp", beacons)).collect();
    wait_for("both replicas to be heard", LIMIT, || {
        gateway.replicas().iter().all(|replica| replica["load_source"] == "beacon")
    });
    let page = gateway.admin_get("/metrics").text();
    let receiver = format!("emberlane_beacon_receiver{{address=\"{beacons}\",mode=\"socket\"}} 1");
    assert!(page.lines().any(|line| line == receiver), "{receiver}\n{page}");
    let prompt = chat(&text(5, 3_000));
    for _ in 0..2 {
        assert_eq!(gateway.post(PATH, &prompt).status(), 200);
    }
    // A decision is on record once its answer is whole, which may be after the client has it.
    wait_for("the second decision", LIMIT, || gateway.decisions().len() == 2);
    let decision = gateway.decisions()[0].clone();
    assert!(decision["chosen"]["warm_tokens"].as_f64().unwrap() > 100.0, "{decision}");
    assert_eq!(decision["chosen"]["load_source"], "beacon", "{decision}");
    let id = decision["chosen"]["replica"].as_str().unwrap().to_owned();
    let warm = gateway.replicas().iter().position(|replica| replica["id"] == id.as_str()).unwrap();
    engines[warm].process.signal(Signal::SIGKILL);
    wait_for("its port to be free", LIMIT, || std::net::TcpListener::bind(engines[warm].address).is_ok());
    engines[warm].restart_llama(2, 4096);
    let restarted = now();
    wait_for("its prefixes to be forgotten", LIMIT, || gateway.replicas()[warm]["resident_blocks"] == 0);
    eprintln!("a llama.cpp server that restarts: forgotten {:?} after it is healthy again", restarted.elapsed());
    wait_for("the restart to be counted", LIMIT, || metric(&gateway, "emberlane_replica_restarts_total") >= 1);
    wait_for("it to be well again", LIMIT, || gateway.states() == ["healthy"; 2]);
    assert_eq!(gateway.post(PATH, &prompt).status(), 200);
    agents[warm].signal(Signal::SIGTERM);
    wait_for("its replica to drain", LIMIT, || gateway.replicas()[warm]["draining"] != serde_json::json!([]));
    for turn in 0..4 {
        let answer = gateway.post(PATH, &chat(&text(100 + turn, 500)));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_ne!(answer.head.header("x-emberlane-replica"), Some(id.as_str()), "it drains");
    }
}

/// No agent anywhere: the gateway reads the pages itself.
#[test]
fn pages_are_read_where_no_agent_runs() {
    let mut engines = Engine::mocks(2, &[]);
    let gateway = Setup::new(&urls(&engines)).yaml("scrape:\n  interval: 50ms").start();
    wait_for("both pages to be read", LIMIT, || {
        gateway.replicas().iter().all(|replica| replica["load_source"] == "scrape")
    });
    assert!(metric(&gateway, "emberlane_scrapes_total") >= 2);
    let gone = engines.remove(0);
    let silent = gone.address;
    drop(gone);
    wait_for("the silence to be told", LIMIT, || {
        gateway.replicas()[0]["load_freshness"] == "stale" && metric(&gateway, "emberlane_replica_silences_total") == 1
    });
    assert_eq!(gateway.replicas()[1]["load_freshness"], "fresh");
    let _back = Engine::mock_at(silent, &[]);
    wait_for("its page to be read again", LIMIT, || gateway.replicas()[0]["load_source"] == "scrape");
}

/// One that speaks for a replica, in the test's hands.
struct Speaker {
    socket: UdpSocket,
    keys: Keys,
    head: Head,
    facts: Facts,
}

impl Speaker {
    fn new(backend: &Backend, beacons: SocketAddr, keys: &str) -> Self {
        let started = Clock::unix_ns() / 1000;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(beacons).unwrap();
        let sender = SenderId::of("a name of its own");
        let head = Head { sender, incarnation: started, sequence: started, sent_unix_ns: 0, period_us: 20_000 };
        let facts = Facts { url: Some(backend.url()), models: vec!["m".to_owned()], ..Facts::default() };
        Self { socket, keys: Keys::parse(keys).unwrap(), head, facts }
    }

    fn say(&mut self, load: Load) {
        self.head.sequence += 1;
        self.head.sent_unix_ns = Clock::unix_ns();
        let mut datagram = Vec::new();
        let message = Message { head: self.head, load, facts: self.facts.clone() };
        message.encode(self.keys.signing(), &mut datagram).unwrap();
        self.socket.send(&datagram).unwrap();
    }
}

const READY: Load = Load {
    ready: true,
    draining: false,
    running: 0,
    waiting: 0,
    kv_usage: None,
    kv_blocks: None,
    kv_block_tokens: None,
    prefill_tokens: None,
    cache_resets: 0,
    blocks_evicted: None,
    prefix_tokens_queried: None,
    prefix_tokens_hit: None,
};

/// A replica that nobody has named registers by a signed beacon, serves, drains by its bit, and is gone once silent.
#[test]
fn a_replica_registers_itself_and_leaves_by_falling_silent() {
    let (backend, beacons, files) = (Backend::completing(), free_udp(), tempfile::tempdir().unwrap());
    let keys = files.path().join("keys");
    std::fs::write(&keys, KEYS[0]).unwrap();
    let yaml = format!(
        "beacons:\n  listen: \"{beacons}\"\n  keys: {}\ndiscovery:\n  beacons: true\n  expire: 2s",
        keys.display()
    );
    let gateway = Setup::new(&[]).yaml(&yaml).start_unready();
    let mut forger = Speaker::new(&backend, beacons, KEYS[1]);
    forger.say(READY);
    let mut speaker = Speaker::new(&backend, beacons, KEYS[0]);
    wait_for("it to be registered", LIMIT, || {
        speaker.say(READY);
        gateway.replicas().len() == 1
    });
    assert_eq!(gateway.replicas()[0]["source"], "beacon");
    wait_for("it to be heard under its slot", LIMIT, || {
        speaker.say(READY);
        gateway.replicas()[0]["load_source"] == "beacon"
    });
    assert_eq!(gateway.post(PATH, &chat("hello")).status(), 200);
    wait_for("it to drain", LIMIT, || {
        speaker.say(Load { draining: true, ..READY });
        gateway.post(PATH, &chat("hello")).status() == 503
    });
    wait_for("it to take requests again", LIMIT, || {
        speaker.say(READY);
        gateway.post(PATH, &chat("hello")).status() == 200
    });
    let silent = now();
    wait_for("it to be removed", LIMIT, || gateway.replicas().is_empty());
    eprintln!("a registered replica that falls silent: removed after {:?} (expire: 2 s)", silent.elapsed());
}

/// Keys are read anew at SIGHUP: first both are accepted, then only the new one.
#[test]
fn keys_change_without_a_gap() {
    let (backend, beacons, files) = (Backend::completing(), free_udp(), tempfile::tempdir().unwrap());
    let keys = files.path().join("keys");
    std::fs::write(&keys, KEYS[0]).unwrap();
    let yaml = format!("beacons:\n  listen: \"{beacons}\"\n  keys: {}", keys.display());
    let urls = [backend.url()];
    let gateway = Setup::new(&urls).yaml(&yaml).start();
    let mut speaker = Speaker::new(&backend, beacons, KEYS[0]);
    speaker.head.sender = SenderId::of(backend.url().trim_start_matches("http://"));
    let taken = || metric(&gateway, "emberlane_beacons_total");
    let refused = || metric(&gateway, "emberlane_beacons_refused_total");
    let reload = |text: &str, reloads| {
        std::fs::write(&keys, text).unwrap();
        gateway.reload(&gateway.setup.file_text(&urls));
        wait_for("the keys to be in force", LIMIT, || metric(&gateway, "emberlane_config_reloads_total") == reloads);
    };
    speaker.say(READY);
    wait_for("the old key to be accepted", LIMIT, || taken() == 1);
    reload(&[KEYS[1], KEYS[0]].concat(), 1);
    speaker.say(READY);
    wait_for("the old key to be accepted still", LIMIT, || taken() == 2);
    speaker.keys = Keys::parse(KEYS[1]).unwrap();
    speaker.say(READY);
    wait_for("the new key to be accepted", LIMIT, || taken() == 3);
    reload(KEYS[1], 2);
    speaker.keys = Keys::parse(KEYS[0]).unwrap();
    speaker.say(READY);
    wait_for("the old key to be refused", LIMIT, || refused() == 1);
    std::fs::write(&keys, "7:nonsense\n").unwrap();
    gateway.reload(&gateway.setup.file_text(&urls));
    wait_for("bad keys to be refused", LIMIT, || metric(&gateway, "emberlane_config_reload_failures_total") == 1);
    speaker.keys = Keys::parse(KEYS[1]).unwrap();
    speaker.say(READY);
    wait_for("the keys before to stay in force", LIMIT, || taken() == 4);
}
