//! Rows of the load plane while a whole gateway serves requests in this process: how old the load reports are when a
//! decision uses them, with 1,000 replicas that report at 100 Hz; and what a flood of forged beacons does to requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use emberlane::config::{BeaconConfig, Config, ReplicaConfig};
use emberlane::gateway::Gateway;
use emberlane::wire::beacon::{Facts, Head, Load, Message, SenderId};

use crate::row::{Goal, Options, Row};

const REPLICAS: usize = 1000;
const PERIOD: Duration = Duration::from_millis(10);
/// Beacons that are sent at once; the sender then waits until the next are due.
const BURST: usize = 20;
/// Forged beacons a second: what one sender of a small machine can do beside the requests.
const FLOOD_PER_S: u32 = 150_000;
/// A chat of about 1 KB.
const PROMPT_BYTES: usize = 800;

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    // Both live until the end: a gateway that stops is not what is measured.
    let (large, small) = (World::new(REPLICAS), World::new(16));
    let mut rows = ages(options, &large);
    rows.extend(flood(options, &small));
    rows
}

/// How old the report of the chosen replica is, over all decisions.
fn ages(options: &Options, world: &World) -> Vec<Row> {
    let (seconds, stop) = (options.repeats(10).max(2), AtomicBool::new(false));
    let (mut ages, sent, requests) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| world.report(&stop));
        let clients: Vec<_> = (0..2)
            .map(|number| {
                scope.spawn({
                    let stop = &stop;
                    move || world.request(number, stop).len()
                })
            })
            .collect();
        let mut ages = Vec::new();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds as u64) {
            wait(Duration::from_millis(50));
            ages.extend(world.load_ages_ms());
        }
        stop.store(true, Relaxed);
        let requests: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        (ages, sender.join().unwrap(), requests)
    });
    let taken = world.gateway.core().metrics.load.beacons.get();
    assert!(taken as f64 >= 0.99 * sent as f64, "{taken} of {sent} beacons taken");
    assert!(sent as f64 >= 0.95 * (REPLICAS * seconds * 100) as f64, "the sender fell behind: {sent} beacons");
    assert!(ages.len() >= 100, "{} placements seen of {requests}", ages.len());
    ages.sort_by(f64::total_cmp);
    vec![
        Row::new("plane/load-age/1000-replicas/p50", ages[ages.len() / 2], "ms"),
        Row::new("plane/load-age/1000-replicas/p99", ages[ages.len() * 99 / 100], "ms").goal(Goal::AtMost(20.0)),
        Row::new("plane/beacons-taken", taken as f64 / sent as f64 * 100.0, "%"),
    ]
}

/// Latency of requests while forged beacons pour in, against the same flood at a socket that nobody reads.
fn flood(options: &Options, world: &World) -> Vec<Row> {
    let bystander = UdpSocket::bind("127.0.0.1:0").unwrap();
    let turns = options.repeats(8).max(2);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..2 * turns {
        let target = if turn % 2 == 0 { world.beacons } else { bystander.local_addr().unwrap() };
        let stop = AtomicBool::new(false);
        let times = std::thread::scope(|scope| {
            let flood = scope.spawn(|| forge(target, &stop));
            let client = scope.spawn(|| world.request(turn, &stop));
            wait(Duration::from_millis(1000));
            stop.store(true, Relaxed);
            flood.join().unwrap();
            client.join().unwrap()
        });
        if turn % 2 == 0 { ours.extend(times) } else { theirs.extend(times) }
    }
    assert!(world.gateway.core().metrics.load.beacons.get() == 0, "none of the forged beacons is taken");
    assert!(world.gateway.core().metrics.load.floods.get() > 0, "the flood is noticed");
    let rank = |times: &mut Vec<f64>, share: usize| {
        times.sort_by(f64::total_cmp);
        times[(times.len() - 1) * share / 100]
    };
    let [p50, p99] = [50, 99].map(|share| (rank(&mut ours, share), rank(&mut theirs, share)));
    vec![
        Row::new("plane/flood/request-p50", p50.0, "µs").against("flood elsewhere", p50.1),
        Row::new("plane/flood/request-p99", p99.0, "µs").against("flood elsewhere", p99.1),
        Row::ratio("plane/flood/ratio", p50.1 / p50.0, "flood elsewhere").goal(Goal::AtLeast(0.9)),
    ]
}

/// A gateway, its replicas, and where it listens for beacons.
struct World {
    gateway: Gateway,
    beacons: SocketAddr,
    senders: Vec<SenderId>,
    incarnation: u64,
    seen: AtomicU64,
    _replicas: Replicas,
}

impl World {
    fn new(replicas: usize) -> Self {
        let served = Replicas::start(replicas);
        let beacons = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let replica = |address: &SocketAddr| ReplicaConfig {
            models: vec!["m".to_owned()],
            ..ReplicaConfig::new(address.to_string(), format!("http://{address}").parse().unwrap())
        };
        let config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            admin: None,
            replicas: served.addresses.iter().map(replica).collect(),
            beacons: BeaconConfig { listen: vec![beacons], ..BeaconConfig::default() },
            health: None,
            warm_up: None,
            ..Config::default()
        };
        Self {
            gateway: Gateway::start(config).unwrap(),
            beacons,
            senders: served.addresses.iter().map(|address| SenderId::of(&address.to_string())).collect(),
            incarnation: unix_ns() / 1000,
            seen: AtomicU64::new(0),
            _replicas: served,
        }
    }

    /// Sends each replica's beacons at 100 Hz until told to stop; how many.
    fn report(&self, stop: &AtomicBool) -> u64 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.beacons).unwrap();
        let (mut datagram, mut sent, start) = (Vec::new(), 0_u64, Instant::now());
        let each = PERIOD / u32::try_from(self.senders.len()).unwrap();
        while !stop.load(Relaxed) {
            let due = u64::try_from(start.elapsed().as_nanos() / each.as_nanos()).unwrap();
            if due < sent + BURST as u64 {
                std::thread::park_timeout(Duration::from_micros(100));
                continue;
            }
            for number in sent..sent + BURST as u64 {
                let sender = self.senders[usize::try_from(number).unwrap() % self.senders.len()];
                let running = (number % 8) as u32;
                beacon(sender, self.incarnation, self.incarnation + number, running, &mut datagram);
                socket.send(&datagram).unwrap();
            }
            sent += BURST as u64;
        }
        sent
    }

    /// Sends requests one after another until told to stop; how long each took, µs.
    fn request(&self, number: usize, stop: &AtomicBool) -> Vec<f64> {
        let mut stream = TcpStream::connect(self.gateway.listen_addr()).unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut times, mut answer) = (Vec::new(), vec![0; 4096]);
        while !stop.load(Relaxed) {
            let prompt = format!("{number} {} {}", times.len(), "x".repeat(PROMPT_BYTES));
            let body = format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]}}");
            let request = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let start = Instant::now();
            stream.write_all(request.as_bytes()).unwrap();
            read_answer(&mut stream, &mut answer);
            times.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        times
    }

    /// Ages of the reports behind the placements since the last call.
    fn load_ages_ms(&self) -> Vec<f64> {
        let core = self.gateway.core();
        let seen = self.seen.swap(core.clock.now().0, Relaxed);
        let records = core.rings.iter().flat_map(|ring| ring.read());
        let fresh = records.filter(|record| record.decision.at.0 >= seen && seen != 0);
        fresh.filter_map(|record| record.decision.chosen.load_age()).map(|age| age.as_secs_f64() * 1e3).collect()
    }
}

/// Waits for no less than `time`: a thread that ends wakes the one that scoped it.
fn wait(time: Duration) {
    let start = Instant::now();
    while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Reads one whole answer with a known length.
fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) {
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).unwrap();
        assert!(count > 0, "the gateway closed the connection");
        filled += count;
        let text = std::str::from_utf8(&buffer[..filled]).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.to_lowercase().split("content-length: ").nth(1).unwrap().lines().next().unwrap().to_owned();
        if body.len() >= length.parse::<usize>().unwrap() {
            return;
        }
    }
}

fn beacon(sender: SenderId, incarnation: u64, sequence: u64, running: u32, out: &mut Vec<u8>) {
    let head = Head {
        sender,
        incarnation,
        sequence,
        sent_unix_ns: unix_ns(),
        period_us: u32::try_from(PERIOD.as_micros()).unwrap(),
    };
    let load = Load { ready: true, running, ..Load::default() };
    Message { head, load, facts: Facts::default() }.encode(None, out).unwrap();
}

/// Beacons of somebody unknown, whole in form: each gets as far as a beacon without a key can.
fn forge(target: SocketAddr, stop: &AtomicBool) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut datagram = Vec::new();
    beacon(SenderId(1), 1, 1, 1, &mut datagram);
    let (start, mut sent) = (Instant::now(), 0);
    while !stop.load(Relaxed) {
        while sent < (start.elapsed() * FLOOD_PER_S).as_secs() {
            // A full buffer is what a flood makes: what is dropped there counts as sent.
            let _dropped = socket.send_to(&datagram, target);
            sent += 1;
        }
        std::thread::park_timeout(Duration::from_micros(100));
    }
}

fn unix_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Engines that answer anything at once.
struct Replicas {
    addresses: Vec<SocketAddr>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Replicas {
    fn start(count: usize) -> Self {
        let listeners: Vec<_> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("1,000 sockets: raise `ulimit -n` to 8,192"))
            .collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                for listener in listeners {
                    listener.set_nonblocking(true).unwrap();
                    tokio::spawn(accept(tokio::net::TcpListener::from_std(listener).unwrap()));
                }
                let _stopped = stopped.await;
            });
        });
        Self { addresses, _stop: stop }
    }
}

async fn accept(listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const BODY: &str =
        r#"{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":200,"completion_tokens":1}}"#;
    let answer = Arc::new(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    ));
    let (mut buffer, mut filled) = (vec![0; 8192], 0);
    while let Ok(count @ 1..) = stream.read(&mut buffer[filled..]).await {
        filled += count;
        let text = String::from_utf8_lossy(&buffer[..filled]).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            filled = 0;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
