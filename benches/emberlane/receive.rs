//! Rows of receiving beacons: CPU time a beacon, and beacons a second, for tokio's `recv_from`, for `recvmmsg`, and past
//! the kernel, out of its generic hook and out of the driver.
//!
//! Two threads, a core each, in network namespaces of their own with a virtual cable (veth) between them: one sends
//! beacons of 128 bytes with `sendmmsg`, the other receives them and adds up their numbers, so that every count is exact.
//! Contenders take turns, round by round.
//!
//! What is counted is the CPU time of the receiving thread, in two settings. With a backlog (`cpu`): 2,048 beacons wait
//! and are then received at a stretch, as when more come than sleep is left between; what is compared with the goals.
//! `rate` is beacons over wall time of the same, and `capacity` one second over the CPU time of a beacon: what one core
//! could take if nothing else ran on it. And `live`: both threads run at once. A receiver that keeps up is then woken
//! for a beacon or two at a time, which costs more than the beacons do. Ours naps a tenth of a millisecond when it pays;
//! `recv_from` has no such thing, so `live` compares receivers and not system calls alone.
//!
//! What the kernel does before a datagram waits at a socket or in a ring (its IP and UDP layers, or the XDP program and
//! the copy to our memory) runs as a soft interrupt, over veth on the core of the sender, and is charged to the sending
//! thread; so the rows `both` add that thread's time, sending included. AF_XDP's time includes what the kernel does
//! for the others: it checks lengths and checksums.
#![expect(unsafe_code, reason = "sendmmsg, a thread's CPU time and SO_RCVBUFFORCE have no safe interface at hand")]
#![expect(clippy::print_stderr, reason = "says why it does not run")]

use std::{
    net::UdpSocket,
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc::{Receiver as Inbox, Sender, channel},
    time::{Duration, Instant},
};

use emberlane::{
    config::Bypass,
    load::receive::{Mode, ReceiveConfig, Receiver},
};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};

use crate::row::{Goal, Options, Row};

/// Bytes of a beacon without optional fields but a short URL.
const BEACON: usize = 128;
/// Beacons a `sendmmsg`.
const BURST: usize = 64;
/// Beacons at a stretch: less than any buffer on the way holds, so that none is lost.
const STRETCH: u64 = 2048;
/// Stretches a round, of each contender in each setting.
const STRETCHES: usize = 20;
/// Where they go.
const LISTEN: &str = "10.98.0.2:7946";
/// How long a receiver waits for what must come.
const LIMIT: Duration = Duration::from_secs(10);

/// Who receives.
#[derive(Clone, Copy, PartialEq)]
enum Contender {
    RecvFrom,
    Recvmmsg,
    Skb,
    Native,
}

impl Contender {
    const ALL: [Self; 4] = [Self::RecvFrom, Self::Recvmmsg, Self::Skb, Self::Native];

    fn name(self) -> &'static str {
        match self {
            Self::RecvFrom => "recv_from",
            Self::Recvmmsg => "recvmmsg",
            Self::Skb => "af_xdp-skb",
            Self::Native => "af_xdp",
        }
    }
}

/// One round, a beacon.
#[derive(Clone, Copy, Default)]
struct Sample {
    /// CPU time of the receiving thread with a backlog, nanoseconds.
    backlog: f64,
    /// CPU time of both threads then, nanoseconds.
    both: f64,
    /// Wall time of receiving then, nanoseconds.
    wall: f64,
    /// CPU time of the receiving thread while the other sends, nanoseconds.
    live: f64,
}

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let rounds = options.repeats(20);
    match std::thread::spawn(move || measure(rounds)).join().unwrap() {
        Ok(samples) => table(&samples),
        Err(reason) => {
            eprintln!("SKIP receive: {reason}");
            Vec::new()
        }
    }
}

/// The rows of all rounds, each an array in the order of [`Contender::ALL`].
fn table(rounds: &[[Sample; 4]]) -> Vec<Row> {
    let sorted = |contender: Contender, field: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(|round| field(&round[contender as usize])).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let median = |contender, field| {
        let values = sorted(contender, field);
        values[values.len() / 2]
    };
    let rival = "recv_from";
    let mut rows = Vec::new();
    for contender in Contender::ALL {
        let mut row = |figure: &str, unit, value: &dyn Fn(Contender) -> f64| {
            let name = format!("receive/{}/{figure}", contender.name());
            rows.push(Row::new(name, value(contender), unit).against(rival, value(Contender::RecvFrom)));
        };
        row("cpu", "ns", &|who| median(who, |sample| sample.backlog));
        row("cpu-min", "ns", &|who| sorted(who, |sample| sample.backlog)[0]);
        row("both", "ns", &|who| median(who, |sample| sample.both));
        row("live", "ns", &|who| median(who, |sample| sample.live));
        row("rate", "M/s", &|who| 1e3 / median(who, |sample| sample.wall));
        row("capacity", "M/s", &|who| 1e3 / median(who, |sample| sample.backlog));
    }
    rows.pop().into_iter().for_each(|capacity| rows.push(capacity.goal(Goal::AtLeast(1.0))));
    let mut share = |name: &str, field: fn(&Sample) -> f64| {
        let share = median(Contender::Native, field) / median(Contender::RecvFrom, field);
        let row = Row::new(format!("receive/af_xdp/{name}/share"), share, "x").against(rival, 1.0);
        rows.push(row.goal(Goal::AtMost(0.25)));
    };
    share("cpu", |sample| sample.backlog);
    share("live", |sample| sample.live);
    rows
}

/// Lays the cable and lets the contenders take turns.
fn measure(rounds: usize) -> Result<Vec<[Sample; 4]>, String> {
    let ((tell, told), (order, orders), (report, reports)) = (channel(), channel(), channel());
    let far = std::thread::spawn(move || {
        pin(1);
        let ready = own_network().map(|()| nix::unistd::gettid());
        let is_ready = ready.is_ok();
        tell.send(ready).unwrap();
        if is_ready {
            send_on_order(&orders, &report);
        }
    });
    pin(0);
    let far_thread = told.recv().unwrap()?;
    own_network()?;
    ip("link add near address 02:00:00:00:00:02 type veth peer name far address 02:00:00:00:00:01")?;
    ip(&format!("link set far netns {far_thread}"))?;
    ip("addr add 10.98.0.2/24 dev near")?;
    ip("link set near up")?;

    let mut samples = Vec::new();
    // The first round warms up.
    for round in 0..=rounds {
        let mut all = [Sample::default(); 4];
        for (contender, sample) in Contender::ALL.into_iter().zip(&mut all) {
            *sample = turn(contender, &order, &reports)?;
        }
        if round > 0 {
            samples.push(all);
        }
    }
    drop(order);
    far.join().unwrap();
    Ok(samples)
}

/// One contender's part of a round.
fn turn(contender: Contender, order: &Sender<()>, reports: &Inbox<Result<f64, String>>) -> Result<Sample, String> {
    let mut receive = open(contender)?;
    let mut sum = Sample::default();
    for _ in 0..STRETCHES {
        order.send(()).unwrap();
        let sending = reports.recv().unwrap()?;
        let (cpu, wall) = receive();
        sum = Sample { backlog: sum.backlog + cpu, both: sum.both + cpu + sending, wall: sum.wall + wall, ..sum };
        order.send(()).unwrap();
        sum.live += receive().0;
        reports.recv().unwrap()?;
    }
    let each = |total: f64| total / (STRETCH as f64 * STRETCHES as f64);
    Ok(Sample { backlog: each(sum.backlog), both: each(sum.both), wall: each(sum.wall), live: each(sum.live) })
}

/// Receives a stretch of beacons; returns CPU and wall time in nanoseconds.
type Receive = Box<dyn FnMut() -> (f64, f64)>;

fn open(contender: Contender) -> Result<Receive, String> {
    let (bypass, mode) = match contender {
        Contender::RecvFrom => return Ok(Box::new(recv_from(kernel_socket()))),
        Contender::Recvmmsg => (Bypass::Off, Mode::Socket),
        Contender::Skb => (Bypass::Skb, Mode::Skb),
        Contender::Native => (Bypass::Native, Mode::Native),
    };
    let (listen, interface) = (LISTEN.parse().unwrap(), Some("near".to_owned()));
    let config = ReceiveConfig { listen, interface, bypass, busy_poll: false };
    let mut receiver = Receiver::open(&config, 1).map_err(|error| error.to_string())?.remove(0);
    assert!(receiver.mode() == mode);
    Ok(Box::new(move || {
        let mut tally = Tally::new();
        while tally.count < STRETCH {
            if receiver.receive(|_, beacon| tally.add(beacon)).unwrap() == 0 {
                receiver.wait(LIMIT).unwrap();
            }
        }
        let counters = receiver.counters();
        assert_eq!(if mode == Mode::Socket { counters.bypassed } else { counters.through_socket }, 0);
        tally.finish()
    }))
}

fn recv_from(socket: UdpSocket) -> impl FnMut() -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let socket = runtime.block_on(async { tokio::net::UdpSocket::from_std(socket).unwrap() });
    let mut buffer = [0; 2048];
    move || {
        runtime.block_on(async {
            let mut tally = Tally::new();
            while tally.count < STRETCH {
                let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
                tally.add(&buffer[..length]);
            }
            tally.finish()
        })
    }
}

/// A plain socket that holds a stretch of beacons.
fn kernel_socket() -> UdpSocket {
    let socket = UdpSocket::bind(LISTEN).unwrap();
    socket.set_nonblocking(true).unwrap();
    let (fd, bytes) = (socket.as_raw_fd(), 16_i32 << 20);
    let length = u32::try_from(size_of::<i32>()).unwrap();
    // SAFETY: the option is an int, read during the call.
    let set =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const bytes).cast(), length) };
    assert_eq!(set, 0);
    socket
}

/// What a receiver has seen of a stretch.
struct Tally {
    count: u64,
    sum: u64,
    cpu: f64,
    start: Instant,
}

impl Tally {
    fn new() -> Self {
        Self { count: 0, sum: 0, cpu: cpu_ns(), start: Instant::now() }
    }

    fn add(&mut self, beacon: &[u8]) {
        assert_eq!(beacon.len(), BEACON);
        self.sum += u64::from_le_bytes(*beacon.first_chunk().unwrap());
        self.count += 1;
    }

    /// CPU and wall time since the start, nanoseconds; asserts that every number came once.
    fn finish(self) -> (f64, f64) {
        let times = (cpu_ns() - self.cpu, self.start.elapsed().as_nanos() as f64);
        assert_eq!((self.count, self.sum), (STRETCH, STRETCH * (STRETCH - 1) / 2));
        times
    }
}

/// At the far end: sends a stretch for each order, and reports the CPU time it took, nanoseconds.
fn send_on_order(orders: &Inbox<()>, report: &Sender<Result<f64, String>>) {
    let mut socket = None;
    for () in orders {
        let sent = match &socket {
            Some(socket) => Ok(send(socket)),
            None => set_up_far_end().map(|new| send(socket.insert(new))),
        };
        let _ = report.send(sent);
    }
}

fn set_up_far_end() -> Result<UdpSocket, String> {
    ip("addr add 10.98.0.1/24 dev far")?;
    ip("link set far up")?;
    ip("neigh replace 10.98.0.2 lladdr 02:00:00:00:00:02 dev far nud permanent")?;
    let socket = UdpSocket::bind("10.98.0.1:0").map_err(|error| error.to_string())?;
    socket.connect(LISTEN).map_err(|error| error.to_string())?;
    Ok(socket)
}

fn send(socket: &UdpSocket) -> f64 {
    let before = cpu_ns();
    let mut bytes = [[0x5a_u8; BEACON]; BURST];
    for first in (0..STRETCH).step_by(BURST) {
        for (beacon, number) in bytes.iter_mut().zip(first..) {
            *beacon.first_chunk_mut().unwrap() = number.to_le_bytes();
        }
        burst(socket, &mut bytes);
    }
    cpu_ns() - before
}

/// Sends them all in one system call.
fn burst(socket: &UdpSocket, beacons: &mut [[u8; BEACON]; BURST]) {
    let part = |beacon: &mut [u8; BEACON]| libc::iovec { iov_base: beacon.as_mut_ptr().cast(), iov_len: BEACON };
    let mut parts = beacons.each_mut().map(part);
    // SAFETY: all-zero is a valid `mmsghdr`.
    let mut headers: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
    for (header, part) in headers.iter_mut().zip(&mut parts) {
        header.msg_hdr.msg_iov = part;
        header.msg_hdr.msg_iovlen = 1;
    }
    let (fd, count) = (socket.as_raw_fd(), u32::try_from(BURST).unwrap());
    // SAFETY: `count` headers, each with one buffer of the length given; all live to the end of the call.
    let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count, 0) };
    assert_eq!(usize::try_from(sent), Ok(BURST), "{}", std::io::Error::last_os_error());
}

/// CPU time of this thread, nanoseconds.
fn cpu_ns() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    let got = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(got, 0);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Keeps this thread on `core`, where there are so many.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        eprintln!("receive: a thread is not on a core of its own: {error}");
    }
}

/// Moves this thread into a network namespace of its own.
fn own_network() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace (run as root): {error}"))
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip (of iproute2): {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
