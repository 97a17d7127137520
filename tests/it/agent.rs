//! The agent as a process of its own: before real llama.cpp servers, before the recorded pages of every engine, and
//! before a publisher of KV events. What it says is heard by plain sockets and read by the beacon's own reader.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use emberlane::clock::Clock;
use emberlane::wire::beacon::{Beacon, Facts, Head, Load, SenderId};
use emberlane::wire::key::Keys;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::json;

use crate::support::engine::Engine;
use crate::support::http;
use crate::support::pages::{Page, PageServer};
use crate::support::process::Process;
use crate::support::time::{now, wait_for};
use crate::support::{free_address, root};

/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(20);
const REPLICA: &str = "10.1.2.3:8000";

/// A beacon, taken apart.
#[derive(Clone, Debug)]
struct Heard {
    head: Head,
    load: Load,
    facts: Facts,
    key: u32,
    bytes: Vec<u8>,
}

/// A gateway's ear.
#[derive(Debug)]
struct Ear {
    socket: UdpSocket,
}

impl Ear {
    fn open() -> Self {
        Self::at("127.0.0.1:0")
    }

    fn at(address: &str) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { socket }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// The next beacon; one that cannot be read fails the test.
    #[track_caller]
    fn next(&self) -> Heard {
        let mut buffer = [0; 2_048];
        let length = self.socket.recv(&mut buffer).unwrap();
        let beacon = Beacon::parse(&buffer[..length]).unwrap();
        let bytes = buffer[..length].to_vec();
        Heard { head: beacon.head(), load: beacon.load(), facts: beacon.facts(), key: beacon.key_id(), bytes }
    }

    /// The first beacon of which `wanted` holds.
    #[track_caller]
    fn until(&self, what: &str, wanted: impl Fn(&Heard) -> bool) -> Heard {
        let start = now();
        let mut last = None;
        while start.elapsed() < LIMIT {
            let heard = self.next();
            if wanted(&heard) {
                return heard;
            }
            last = Some(heard);
        }
        panic!("waited {LIMIT:?} in vain for a beacon with {what}; the last was {last:#?}");
    }
}

/// An agent that looks at `metrics`.
fn agent(metrics: &str, ears: &[&Ear], arguments: &[&str]) -> Process {
    let gateways: Vec<String> = ears.iter().map(|ear| ear.address().to_string()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
    command.args(["agent", "--metrics", metrics, "--replica-url", &format!("http://{REPLICA}")]);
    if !gateways.is_empty() {
        command.args(["--gateway", &gateways.join(",")]);
    }
    command.args(arguments).env_remove("EMBERLANE_LOG");
    Process::start("agent", &mut command)
}

#[test]
fn what_llamacpp_does_is_told() {
    let Some(mut engines) = Engine::llama(1, 2, 4_096) else { return };
    let mut engine = engines.remove(0);
    let (ear, other) = (Ear::open(), Ear::open());
    let metrics = format!("{}/metrics", engine.url());
    let _agent = agent(&metrics, &[&ear, &other], &["--hz", "50"]);
    let first = ear.until("facts", |heard| heard.facts.slots.is_some() && !heard.facts.models.is_empty());
    assert_eq!(first.head.sender, SenderId::of(REPLICA));
    assert!(first.load.ready && !first.load.draining && first.key == 0);
    assert_eq!(first.facts.url.as_deref(), Some(format!("http://{REPLICA}").as_str()));
    assert_eq!((first.facts.engine.as_deref(), first.facts.slots), (Some("llamacpp"), Some(2)));
    assert_eq!(first.facts.models, ["m"]);
    assert_eq!(first.head.period_us, 20_000);
    other.until("the same", |heard| heard.head.sender == first.head.sender && heard.load.ready);

    // Three requests for two slots: two run, one waits; then none.
    let address = engine.address;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let body = json!({ "model": "m", "prompt": "once upon a time", "max_tokens": 600, "ignore_eos": true });
            scope.spawn(move || http::post(address, "/v1/completions", &body.to_string()).unwrap());
        }
        ear.until("two running, one waiting", |heard| heard.load.running == 2 && heard.load.waiting == 1);
    });
    let idle = ear.until("rest", |heard| heard.load.running == 0 && heard.load.waiting == 0);
    assert!(idle.load.prefix_tokens_queried > first.load.prefix_tokens_queried);
    assert_eq!(idle.head.incarnation, first.head.incarnation);
    assert!(idle.head.sequence > first.head.sequence);

    // It crashes: not ready, and the agent goes on. It comes back at its address: the first look at it tells.
    engine.process.crash();
    let down = ear.until("not ready", |heard| !heard.load.ready);
    assert_eq!(down.head.incarnation, first.head.incarnation);
    engine.restart_llama(2, 4_096);
    let back = ear.until("ready", |heard| heard.load.ready);
    assert!(back.head.incarnation > first.head.incarnation, "{back:?}");
    let again = ear.until("facts again", |heard| heard.facts.slots.is_some());
    assert_eq!(again.head.incarnation, back.head.incarnation);
}

#[test]
fn an_agent_that_restarts_leaves_the_incarnation() {
    let Some(engines) = Engine::llama(1, 1, 2_048) else { return };
    let metrics = format!("{}/metrics", engines[0].url());
    let ear = Ear::open();
    let mut first = agent(&metrics, &[&ear], &[]);
    let before = ear.until("ready", |heard| heard.load.ready);
    first.signal(Signal::SIGKILL);
    first.wait(LIMIT);
    let _second = agent(&metrics, &[&ear], &[]);
    let after =
        ear.until("a later sender", |heard| heard.load.ready && heard.head.sequence > before.head.sequence + 50);
    // In whole seconds: to be between two of them at the moment it is worked out is the one way to differ.
    let apart = after.head.incarnation.abs_diff(before.head.incarnation);
    assert!(apart == 0 || apart == 1_000_000, "{} {}", before.head.incarnation, after.head.incarnation);
}

/// The load of each engine's page, exactly.
#[test]
fn the_pages_of_all_engines_are_told_exactly() {
    let load = |running, waiting| Load { ready: true, running, waiting, ..Load::default() };
    let cases = [
        (
            "vllm-busy",
            Load {
                kv_usage: Some(0.220_126),
                kv_blocks: Some(160),
                kv_block_tokens: Some(32),
                prefix_tokens_queried: Some(1_923),
                prefix_tokens_hit: Some(384),
                ..load(2, 6)
            },
        ),
        (
            "sglang-busy",
            Load {
                kv_usage: Some(0.28),
                kv_blocks: Some(27_648),
                kv_block_tokens: Some(16),
                blocks_evicted: Some(2_000),
                prefix_tokens_queried: Some(8_128_902),
                prefix_tokens_hit: Some(61_028),
                ..load(162, 2_826)
            },
        ),
        (
            "trtllm-busy",
            Load {
                kv_usage: Some(0.4375),
                kv_blocks: Some(5_360),
                kv_block_tokens: Some(32),
                prefix_tokens_queried: Some(68_000),
                prefix_tokens_hit: Some(61_600),
                ..load(73, 4)
            },
        ),
        (
            "triton-busy",
            Load { kv_usage: Some(0.625), kv_blocks: Some(6_400), kv_block_tokens: Some(64), ..load(64, 9) },
        ),
        ("llamacpp-busy", Load { prefix_tokens_queried: Some(14), prefix_tokens_hit: Some(0), ..load(2, 1) }),
    ];
    let server = PageServer::start(Page::recorded("llamacpp-idle"));
    let ear = Ear::open();
    for (name, expected) in cases {
        server.set(Page::recorded(name));
        let engine = name.split('-').next().unwrap();
        let agent = agent(&server.url(), &[&ear], &["--engine", engine, "--label", "zone=a"]);
        let heard = ear.until(name, |heard| heard.facts.engine.as_deref() == Some(engine) && heard.load.ready);
        assert_eq!(heard.load, expected, "{name}");
        let served = ear.until("models", |heard| heard.facts.models == ["served"]);
        assert_eq!(served.facts.labels, [("zone".to_owned(), "a".to_owned())], "{name}");
        if engine == "vllm" {
            assert_eq!(heard.head.incarnation, 1_795_635_579_440_000);
            assert_eq!(heard.facts.adapters_loaded, ["tiny-lora"]);
        }
        drop(agent);
    }
}

#[test]
fn a_restart_is_told_by_the_first_look_after_it() {
    let page = |queried: u64| {
        Page::text(format!(
            "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:prefix_cache_queries_total {queried}\n\
             vllm:prefix_cache_hits_total 0\n"
        ))
    };
    let server = PageServer::start(page(100));
    let ear = Ear::open();
    let _agent = agent(&server.url(), &[&ear], &["--engine", "vllm"]);
    let before = ear.until("100", |heard| heard.load.prefix_tokens_queried == Some(100)).head;
    server.set(page(200));
    let risen = ear.until("200", |heard| heard.load.prefix_tokens_queried == Some(200)).head;
    assert_eq!(before.incarnation, risen.incarnation);
    // Its counters begin anew, and nobody was there to see it gone.
    server.set(page(3));
    let after = ear.until("3", |heard| heard.load.prefix_tokens_queried == Some(3)).head;
    assert!(after.incarnation > before.incarnation);
}

#[test]
fn a_stopping_agent_says_that_it_drains() {
    let server = PageServer::start(Page::recorded("vllm-idle"));
    let ear = Ear::open();
    let mut agent = agent(&server.url(), &[&ear], &[]);
    ear.until("ready", |heard| heard.load.ready && !heard.load.draining);
    agent.signal(Signal::SIGTERM);
    let draining: Vec<Heard> =
        std::iter::repeat_with(|| ear.next()).skip_while(|heard| !heard.load.draining).take(3).collect();
    assert!(draining.iter().all(|heard| heard.load.draining && heard.load.kv_blocks == Some(160)));
    assert_eq!(agent.wait(LIMIT).code(), Some(0));
}

#[test]
fn names_groups_and_both_families_are_reached() {
    let server = PageServer::start(Page::recorded("vllm-idle"));
    let (named, sixth, group) = (Ear::open(), Ear::at("[::1]:0"), Ear::at("0.0.0.0:0"));
    let all = Ipv4Addr::new(239, 255, 71, 9);
    group.socket.join_multicast_v4(&all, &Ipv4Addr::LOCALHOST).unwrap();
    let port = |ear: &Ear| ear.address().port();
    let gateways = format!("localhost:{},{all}:{},[::1]:{}", port(&named), port(&group), port(&sixth));
    let agent = agent(&server.url(), &[], &["--gateway", &gateways, "--interface", "127.0.0.1"]);
    for (what, ear) in [("a name", &named), ("a group", &group), ("IPv6", &sixth)] {
        ear.until(what, |heard| heard.head.sender == SenderId::of(REPLICA) && heard.load.ready);
    }
    agent.wait_printed("beacons are not signed", LIMIT);
}

#[test]
fn beacons_are_signed_and_keys_are_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    let keys = |id: u32| format!("{id}:{}\n", "5a".repeat(32));
    std::fs::write(&file, keys(7)).unwrap();
    let server = PageServer::start(Page::recorded("vllm-idle"));
    let ear = Ear::open();
    let agent = agent(&server.url(), &[&ear], &["--key-file", file.to_str().unwrap()]);
    let signed = |heard: &Heard, id: u32| {
        let keys = Keys::parse(&keys(id)).unwrap();
        Beacon::parse(&heard.bytes).unwrap().is_signed_by(keys.get(id).unwrap())
    };
    let heard = ear.until("key 7", |heard| heard.key == 7);
    assert!(signed(&heard, 7));
    let skew = heard.head.sent_unix_ns.abs_diff(Clock::unix_ns());
    assert!(skew < 10_000_000_000, "{skew}");
    // A file that cannot be read leaves the key; a good one takes its place.
    std::fs::write(&file, "nonsense").unwrap();
    agent.signal(Signal::SIGHUP);
    agent.wait_printed("the old ones stay", LIMIT);
    assert_eq!(ear.next().key, 7);
    std::fs::write(&file, keys(8)).unwrap();
    agent.signal(Signal::SIGHUP);
    assert!(signed(&ear.until("key 8", |heard| heard.key == 8), 8));
}

#[test]
fn an_engine_that_fails_is_not_ready_and_a_page_that_cannot_be_read_is_silence() {
    let server = PageServer::start(Page::status(503));
    let ear = Ear::open();
    let agent = agent(&server.url(), &[&ear], &["--engine", "vllm", "--hz", "100"]);
    let loading = ear.until("not ready", |heard| !heard.load.ready);
    assert_eq!((loading.load.running, loading.facts.engine.as_deref()), (0, Some("vllm")));
    server.set(Page::recorded("vllm-idle"));
    ear.until("ready", |heard| heard.load.ready);
    server.set(Page::recorded("sglang-busy"));
    agent.wait_printed("it looks like sglang's, not vllm's", LIMIT);
    server.set(Page::status(404));
    agent.wait_printed("the answer is 404", LIMIT);
    // The agent has told of the 404, so it has sent nothing for some looks; what is there was sent before.
    ear.socket.set_nonblocking(true).unwrap();
    while ear.socket.recv(&mut [0; 2_048]).is_ok() {}
    let looks = server.looks();
    wait_for("two more looks", LIMIT, || server.looks() >= looks + 2);
    assert!(ear.socket.recv(&mut [0; 2_048]).is_err(), "beacons without a load");
    ear.socket.set_nonblocking(false).unwrap();
    server.set(Page::recorded("vllm-idle"));
    ear.until("ready again", |heard| heard.load.ready);
}

#[test]
fn evictions_and_resets_are_heard() {
    let server = PageServer::start(Page::recorded("vllm-idle"));
    let ear = Ear::open();
    let publisher = Publisher::start();
    let endpoint = format!("tcp://{}", publisher.address);
    let agent = agent(&server.url(), &[&ear], &["--kv-events", &endpoint]);
    ear.until("no eviction yet", |heard| heard.load.blocks_evicted == Some(0) && heard.load.cache_resets == 0);
    agent.wait_printed("listening to KV events", LIMIT);
    let removed = |medium: &str| {
        [
            b"\x93\xcb\0\0\0\0\0\0\0\0\x91\x83\xa4type\xacBlockRemoved\xacblock_hashes\x92\x01\x02\xa6medium"
                .as_slice(),
            &[0xa0 | u8::try_from(medium.len()).unwrap()],
            medium.as_bytes(),
            b"\x00",
        ]
        .concat()
    };
    let cleared = b"\x92\x01\x91\x91\xb0AllBlocksCleared".to_vec();
    // A subscription takes a moment to arrive: the first batch is sent until it is heard, under one number.
    wait_for("the first eviction", LIMIT, || {
        publisher.send(0, removed("GPU"));
        ear.next().load.blocks_evicted.is_some_and(|evicted| evicted > 0)
    });
    publisher.drain();
    let first = ear.until("a steady count", |heard| heard.load.blocks_evicted.is_some()).load.blocks_evicted;
    publisher.send(1, removed("CPU"));
    publisher.send(2, cleared.clone());
    let reset = ear.until("a reset", |heard| heard.load.cache_resets == 1);
    assert!(reset.load.blocks_evicted >= first);
    let settled = reset.load.blocks_evicted.unwrap();
    publisher.send(6, removed("GPU"));
    ear.until("two more", |heard| heard.load.blocks_evicted == Some(settled + 2));
    agent.wait_printed("KV events were lost", LIMIT);
    publisher.send(7, b"\xc1".to_vec());
    publisher.send(8, cleared);
    ear.until("another reset", |heard| heard.load.cache_resets == 2);
}

#[test]
fn one_look_shows_what_a_beacon_would_say() {
    let server = PageServer::start(Page::recorded("vllm-busy"));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
        command.args(["agent", "--once", "--replica-url", "http://10.1.2.3:8000", "--gateway", "127.0.0.1:9"]);
        command.args(arguments).output().unwrap()
    };
    let output = run(&["--metrics", &server.url()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("KV usage                22.0 %") && text.contains("models on the page      tiny"), "{text}");
    let beacon: serde_json::Value = serde_json::from_str(text.split_at(text.find("\n{").unwrap()).1).unwrap();
    assert_eq!((beacon["load"]["waiting"].as_u64(), beacon["facts"]["models"][0].as_str()), (Some(6), Some("served")));
    server.set(Page::text("[]".to_owned()));
    let output = run(&["--metrics", &server.url()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("/prometheus/metrics"), "{error}");
    let output = run(&["--metrics", "https://127.0.0.1/metrics", "--hz", "0"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("--metrics: only plain http://") && error.contains("--hz: \"0\" is out of range"),
        "{error}"
    );
    let file = root().join("conf/agent.yaml");
    let output = run(&["--config", file.to_str().unwrap(), "--metrics", &server.url(), "--engine", "vllm"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("JSON"), "the file is read, and the flag goes first");
}

/// A publisher of KV events, as vLLM's: it binds.
#[derive(Debug)]
struct Publisher {
    address: SocketAddr,
    queue: tokio::sync::mpsc::UnboundedSender<(u64, Vec<u8>)>,
    waiting: Arc<Mutex<usize>>,
}

impl Publisher {
    fn start() -> Self {
        use zeromq::{PubSocket, Socket as _, SocketSend as _, ZmqMessage};
        let address = free_address();
        let (queue, mut batches) = tokio::sync::mpsc::unbounded_channel::<(u64, Vec<u8>)>();
        let waiting = Arc::new(Mutex::new(0));
        let left = Arc::clone(&waiting);
        let (ready, bound) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut socket = PubSocket::new();
                socket.bind(&format!("tcp://{address}")).await.unwrap();
                ready.send(()).unwrap();
                while let Some((number, payload)) = batches.recv().await {
                    let mut message = ZmqMessage::from("kv@10.1.2.3:8000@m");
                    message.push_back(number.to_be_bytes().to_vec().into());
                    message.push_back(payload.into());
                    socket.send(message).await.unwrap();
                    *left.lock() -= 1;
                }
            });
        });
        bound.recv_timeout(LIMIT).unwrap();
        Self { address, queue, waiting }
    }

    fn send(&self, number: u64, payload: Vec<u8>) {
        *self.waiting.lock() += 1;
        self.queue.send((number, payload)).unwrap();
    }

    /// Waits until all is sent.
    fn drain(&self) {
        wait_for("batches to be sent", LIMIT, || *self.waiting.lock() == 0);
    }
}
