//! What the gateway makes of beacons when things go wrong: loss, reordering, duplicates, clocks that are off, forgers,
//! replays, agents that die and engines that restart. Each test prints its figure.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use emberlane::clock::Clock;
use emberlane::wire::beacon::{Facts, Head, Load, Message, SenderId};
use emberlane::wire::key::Keys;
use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::time::{now, wait_for};
use crate::support::{chat, text};

const PATH: &str = "/v1/chat/completions";
const KEYS: &str = "7:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const SEED: u64 = 20_261_125;
/// Long enough for any of these to happen, however busy the machine.
const LIMIT: Duration = Duration::from_secs(10);

fn unix_ns() -> u64 {
    Clock::unix_ns()
}

/// One replica's agent, in the test's hands.
struct Agent {
    socket: UdpSocket,
    gateway: SocketAddr,
    keys: Option<Keys>,
    head: Head,
}

impl Agent {
    fn new(backend: &Backend, beacons: SocketAddr, keys: Option<&str>) -> Self {
        let started = unix_ns() / 1000;
        let authority = backend.url().trim_start_matches("http://").to_owned();
        let head = Head {
            sender: SenderId::of(&authority),
            incarnation: started,
            sequence: started,
            sent_unix_ns: 0,
            period_us: 10_000,
        };
        Self {
            socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
            gateway: beacons,
            keys: keys.map(|text| Keys::parse(text).unwrap()),
            head,
        }
    }

    /// The next beacon, not sent yet.
    fn next(&mut self, load: Load) -> Vec<u8> {
        self.head.sequence += 1;
        self.at(unix_ns(), load)
    }

    /// A beacon with the present sequence, sent at `unix_ns`.
    fn at(&self, unix_ns: u64, load: Load) -> Vec<u8> {
        let head = Head { sent_unix_ns: unix_ns, ..self.head };
        let mut datagram = Vec::new();
        let key = self.keys.as_ref().and_then(Keys::signing);
        Message { head, load, facts: Facts::default() }.encode(key, &mut datagram).unwrap();
        datagram
    }

    fn send(&self, datagram: &[u8]) {
        assert_eq!(self.socket.send_to(datagram, self.gateway).unwrap(), datagram.len());
    }

    fn say(&mut self, load: Load) {
        let datagram = self.next(load);
        self.send(&datagram);
    }
}

fn running(running: u32) -> Load {
    Load { ready: true, running, ..Load::default() }
}

/// Backends, a gateway that listens for beacons, and where.
struct World {
    backends: Vec<Backend>,
    gateway: Gateway,
    beacons: SocketAddr,
    _files: tempfile::TempDir,
}

impl World {
    fn new(replicas: usize, keys: Option<&str>) -> Self {
        let backends: Vec<Backend> = (0..replicas).map(|_| Backend::completing()).collect();
        let urls: Vec<String> = backends.iter().map(Backend::url).collect();
        let beacons = free_udp();
        let files = tempfile::tempdir().unwrap();
        let mut yaml = format!("beacons:\n  listen: \"{beacons}\"\n");
        if let Some(keys) = keys {
            let path: PathBuf = files.path().join("keys");
            std::fs::write(&path, keys).unwrap();
            yaml += &format!("  keys: {}\n", path.display());
        }
        let gateway = Setup::new(&urls).yaml(&yaml).start();
        Self { backends, gateway, beacons, _files: files }
    }

    fn agent(&self, replica: usize, keys: Option<&str>) -> Agent {
        Agent::new(&self.backends[replica], self.beacons, keys)
    }

    fn replica(&self, replica: usize) -> Value {
        self.gateway.replicas()[replica].clone()
    }

    /// The sum of a metric's values over the labels whose text contains `label`.
    fn metric(&self, name: &str, label: &str) -> u64 {
        let page = self.gateway.admin_get("/metrics").text();
        let of = |line: &&str| line.split(['{', ' ']).next() == Some(name) && line.contains(label);
        page.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn taken(&self) -> u64 {
        self.metric("emberlane_beacons_total", "")
    }

    fn refused(&self, reason: &str) -> u64 {
        self.metric("emberlane_beacons_refused_total", &format!("\"{reason}\""))
    }

    /// Waits until as many datagrams as were sent have been judged.
    #[track_caller]
    fn wait_judged(&self, sent: u64) {
        wait_for("all beacons to be judged", LIMIT, || self.taken() + self.refused_all() == sent);
    }

    fn refused_all(&self) -> u64 {
        self.metric("emberlane_beacons_refused_total", "")
    }
}

fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Half of all beacons are lost: what is known is at most a few periods old, and is always something that was said.
#[test]
fn half_of_the_beacons_are_enough() {
    let world = World::new(1, None);
    let mut agent = world.agent(0, None);
    let mut rng = fastrand::Rng::with_seed(SEED);
    let (mut sent, mut newest, mut ages) = (0, 0, Vec::new());
    for turn in 1..=400_u32 {
        let datagram = agent.next(running(turn));
        if rng.bool() {
            agent.send(&datagram);
            (sent, newest) = (sent + 1, turn);
        }
        if turn % 20 == 0 && newest > 0 {
            wait_for("the newest to be known", LIMIT, || world.replica(0)["running"] == newest);
            ages.push(turn - newest);
        }
    }
    world.wait_judged(sent);
    assert_eq!(world.taken(), sent, "what arrived counts");
    ages.sort_unstable();
    eprintln!(
        "50 % loss: {sent} of 400 beacons arrived, all were taken; behind by {} periods in the median, {} at most",
        ages[ages.len() / 2],
        ages[ages.len() - 1]
    );
}

/// Beacons come in any order and some twice: the newest is what counts, each is taken once at most.
#[test]
fn beacons_out_of_order_and_twice_never_turn_back_time() {
    let world = World::new(1, Some(KEYS));
    let mut agent = world.agent(0, Some(KEYS));
    let mut rng = fastrand::Rng::with_seed(SEED);
    let (mut sent, mut rises, mut highest) = (0, 0, 0);
    for batch in 0..25_u32 {
        let mut datagrams: Vec<_> = (1..=8).map(|n| (batch * 8 + n, agent.next(running(batch * 8 + n)))).collect();
        datagrams.extend_from_within(..4);
        rng.shuffle(&mut datagrams);
        for (number, datagram) in &datagrams {
            agent.send(datagram);
            sent += 1;
            if *number > highest {
                (highest, rises) = (*number, rises + 1);
            }
        }
        world.wait_judged(sent);
        assert_eq!(world.replica(0)["running"], highest, "batch {batch}, seed {SEED}");
    }
    assert_eq!(world.taken(), rises, "seed {SEED}");
    let (late, replayed) = (world.refused("late"), world.refused("replayed"));
    assert_eq!(late + replayed, sent - rises, "seed {SEED}");
    eprintln!("reordered and doubled: {sent} sent, {rises} taken, {late} late, {replayed} a second time");
}

/// A clock that is an hour off is found at the first beacon, named, and costs nobody else anything.
#[test]
fn a_clock_one_hour_off_is_refused_and_named() {
    let world = World::new(2, Some(KEYS));
    let (mut off, mut good) = (world.agent(0, Some(KEYS)), world.agent(1, Some(KEYS)));
    const HOUR: u64 = 3_600_000_000_000;
    for turn in 0..50 {
        off.head.sequence += 1;
        off.send(&off.at(if turn % 2 == 0 { unix_ns() + HOUR } else { unix_ns() - HOUR }, running(9)));
        good.say(running(turn));
    }
    world.wait_judged(100);
    assert_eq!((world.taken(), world.refused("clock")), (50, 50));
    let (off, good) = (world.replica(0), world.replica(1));
    assert_eq!(off["load_source"], "gateway", "{off}");
    assert!(off["load_why"].as_str().unwrap().contains("clock"), "{off}");
    assert_eq!(good["running"], 49);
    eprintln!("a clock an hour off: 50 of 50 refused, the other replica's 50 of 50 taken");
}

/// Whoever has no key, a wrong one or somebody else's sequence changes nothing.
#[test]
fn forged_and_replayed_beacons_change_nothing() {
    const FORGED: u64 = 100;
    let world = World::new(1, Some(KEYS));
    let mut agent = world.agent(0, Some(KEYS));
    let recorded: Vec<_> = (1..=50).map(|n| agent.next(running(n))).collect();
    for datagram in &recorded {
        agent.send(datagram);
    }
    world.wait_judged(50);
    assert_eq!((world.taken(), world.replica(0)["running"].clone()), (50, 50.into()));
    let wrong = KEYS.replace("000102", "ffffff");
    let mut forgers =
        [world.agent(0, None), world.agent(0, Some(&wrong)), world.agent(0, Some(&wrong.replace("7:", "8:")))];
    for forger in &mut forgers {
        for _ in 0..FORGED {
            forger.say(running(7_777));
        }
    }
    let mut flipped = agent.next(running(51));
    flipped[52] ^= 1;
    agent.send(&flipped);
    for datagram in &recorded {
        agent.send(datagram);
    }
    world.wait_judged(50 + 3 * FORGED + 1 + 50);
    assert_eq!((world.taken(), world.replica(0)["running"].clone()), (50, 50.into()));
    let refused: Vec<_> = ["not_signed", "wrong_mac", "unknown_key", "replayed"]
        .map(|reason| (reason, world.refused(reason)))
        .into_iter()
        .collect();
    assert_eq!(refused, [("not_signed", FORGED), ("wrong_mac", FORGED + 1), ("unknown_key", FORGED), ("replayed", 50)]);
    eprintln!("forged and replayed: {refused:?}, nothing changed");
}

/// An agent dies: within a few periods its replica is priced by what the gateway itself has there, and says so.
#[test]
fn an_agent_that_dies_leaves_a_stale_replica_not_a_lost_one() {
    let world = World::new(2, None);
    let mut agents = [world.agent(0, None), world.agent(1, None)];
    for agent in &mut agents {
        agent.head.period_us = 50_000;
        agent.say(running(40));
    }
    wait_for("both to be heard", LIMIT, || world.replica(1)["load_source"] == "beacon");
    let died = now();
    wait_for("the silence to be noticed", LIMIT, || {
        agents[1].say(running(40));
        world.replica(0)["load_source"] == "gateway"
    });
    let took = died.elapsed();
    let silent = world.replica(0);
    assert_eq!((silent["running"].clone(), silent["state"].clone()), (0.into(), "healthy".into()), "{silent}");
    assert!(silent["load_why"].as_str().unwrap().contains("priced by what the gateway has"), "{silent}");
    wait_for("the silence to be counted", LIMIT, || {
        agents[1].say(running(40));
        world.metric("emberlane_replica_silences_total", "") == 1
    });
    // 40 requests of other gateways are at the one that is heard, none that anybody knows of at the other.
    let answer = world.gateway.post(PATH, &chat("hello"));
    assert_eq!(answer.status(), 200);
    assert_eq!((world.backends[0].posts(), world.backends[1].posts()), (1, 0));
    eprintln!("an agent that dies: by own in-flight after {took:?} (period 50 ms: weight falls from 150 ms to 300 ms)");
}

/// The engine restarts at the same address: its prefixes are forgotten by the first beacon that says so.
#[test]
fn a_restarted_engine_is_cold_after_one_beacon() {
    let world = World::new(2, None);
    let mut agents = [world.agent(0, None), world.agent(1, None)];
    for agent in &mut agents {
        agent.say(running(0));
    }
    let prompt = chat(&text(SEED, 20_000));
    for _ in 0..2 {
        let answer = world.gateway.post(PATH, &prompt);
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    // A decision is on record once its answer is whole, which may be after the client has it.
    wait_for("the second decision", LIMIT, || world.gateway.decisions().len() == 2);
    let warm = world.gateway.decisions()[0].clone();
    let warm_tokens = warm["chosen"]["warm_tokens"].as_f64().unwrap();
    assert!(warm_tokens > 100.0, "{warm}");
    let id = warm["chosen"]["replica"].as_str().unwrap().to_owned();
    let place = world.gateway.replicas().iter().position(|replica| replica["id"] == id.as_str()).unwrap();
    let before = world.taken();
    agents[place].head.incarnation += 1_000_000;
    let restarted = now();
    agents[place].say(running(0));
    wait_for("the prefixes to be forgotten", LIMIT, || world.replica(place)["resident_blocks"] == 0);
    let took = restarted.elapsed();
    assert_eq!(world.taken(), before + 1, "by one beacon");
    assert_eq!(world.metric("emberlane_replica_restarts_total", ""), 1);
    eprintln!("an engine that restarts: {warm_tokens} warm tokens forgotten {took:?} after its first beacon");
    // A beacon of the engine before, late: it changes nothing.
    agents[place].head.incarnation -= 1_000_000;
    agents[place].say(running(9));
    world.wait_judged(before + 2);
    assert_eq!(world.refused("leftover"), 1);
}

/// Other gateways' requests count: a replica that is busy with them is not taken for idle.
#[test]
fn what_others_have_in_flight_counts() {
    let world = World::new(2, None);
    let (mut busy, mut idle) = (world.agent(0, None), world.agent(1, None));
    for turn in 0..10 {
        busy.say(running(50));
        idle.say(running(0));
        world.wait_judged(2 * (turn + 1));
        let answer = world.gateway.post(PATH, &chat(&text(turn, 3_000)));
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    assert_eq!((world.backends[0].posts(), world.backends[1].posts()), (0, 10));
}
