//! Rows of receiving beacons: CPU time a beacon, and beacons a second, for tokio's `recv_from`, for `recvmmsg`, and past
//! the kernel, out of its generic hook and out of the driver.
//!
//! Two threads, a core each, in network namespaces of their own with a virtual cable (veth) between them: one sends
//! beacons of 128 bytes with `sendmmsg`, as fast as it can but never more than [`WINDOW`] ahead, so that none is lost and
//! every count is exact; the other receives and adds up their numbers. Contenders take turns, round by round.
//!
//! What is counted: the CPU time of the receiving thread, from its first beacon to its last. What the kernel does before a
//! datagram waits at a socket or in a ring (its IP and UDP layers, or the XDP program and the copy to our memory) runs as
//! a soft interrupt on the core of the sender, as over veth it does, and is charged to the sending thread; so the rows
//! `both` add that thread's time, sending included. AF_XDP's time includes what the kernel does for the others: lengths
//! and checksums. The rate is what came through, usually the sender's limit; the capacity is one second over the CPU time
//! of a beacon: what one core could take.
#![expect(unsafe_code, reason = "sendmmsg, a thread's CPU time and SO_RCVBUFFORCE have no safe interface at hand")]
#![expect(clippy::print_stderr, reason = "says why it does not run")]

use std::{
    net::UdpSocket,
    os::fd::AsRawFd,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::channel,
    },
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
/// Beacons sent and not yet received, at most: less than any buffer on the way holds.
const WINDOW: u64 = 2048;
/// Beacons a round.
const ROUND: u64 = 200_000;
/// Where they go.
const LISTEN: &str = "10.98.0.2:7946";
/// A round that takes longer has lost some.
const LIMIT: Duration = Duration::from_secs(60);

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

/// One round.
#[derive(Clone, Copy)]
struct Sample {
    /// CPU time of the receiving thread, nanoseconds a beacon.
    receiving: f64,
    /// CPU time of both threads, nanoseconds a beacon.
    both: f64,
    /// Beacons a second.
    rate: f64,
}

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let (rounds, beacons) = (options.repeats(15), if options.quick { ROUND / 10 } else { ROUND });
    match std::thread::spawn(move || measure(rounds, beacons)).join().unwrap() {
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
    let receiving: fn(&Sample) -> f64 = |sample| sample.receiving;
    let (rival, theirs) = ("recv_from", median(Contender::RecvFrom, receiving));
    let mut rows = Vec::new();
    for contender in Contender::ALL {
        let (name, ours) = (contender.name(), median(contender, receiving));
        let row = |figure: &str, value, unit| Row::new(format!("receive/{name}/{figure}"), value, unit);
        rows.push(row("cpu", ours, "ns").against(rival, theirs));
        let least = |contender| sorted(contender, receiving)[0];
        rows.push(row("cpu-min", least(contender), "ns").against(rival, least(Contender::RecvFrom)));
        let both = |contender| median(contender, |sample| sample.both);
        rows.push(row("both", both(contender), "ns").against(rival, both(Contender::RecvFrom)));
        let rate = |contender| median(contender, |sample| sample.rate) / 1e6;
        rows.push(row("rate", rate(contender), "M/s").against(rival, rate(Contender::RecvFrom)));
        let capacity = row("capacity", 1e3 / ours, "M/s").against(rival, 1e3 / theirs);
        if contender == Contender::Native {
            rows.push(capacity.goal(Goal::AtLeast(1.0)));
            let share = Row::new("receive/af_xdp/cpu/share", ours / theirs, "x").against(rival, 1.0);
            rows.push(share.goal(Goal::AtMost(0.25)));
        } else {
            rows.push(capacity);
        }
    }
    rows
}

/// Lays the cable and lets the contenders take turns.
fn measure(rounds: usize, beacons: u64) -> Result<Vec<[Sample; 4]>, String> {
    let received = Arc::new(AtomicU64::new(0));
    let ((tell, told), (go, gone), (report, reports)) = (channel(), channel::<u64>(), channel());
    let sender = {
        let received = Arc::clone(&received);
        std::thread::spawn(move || {
            pin(1);
            let ready = own_network().map(|()| nix::unistd::gettid());
            let is_ready = ready.is_ok();
            tell.send(ready).unwrap();
            for wanted in gone.iter().filter(|_| is_ready) {
                if wanted == 0 {
                    let _ = report.send(set_up_far_end());
                } else {
                    let _ = report.send(Ok(send(wanted, &received)));
                }
            }
        })
    };
    pin(0);
    let far = told.recv().unwrap()?;
    own_network()?;
    ip("link add near address 02:00:00:00:00:02 type veth peer name far address 02:00:00:00:00:01")?;
    ip(&format!("link set far netns {far}"))?;
    ip("addr add 10.98.0.2/24 dev near")?;
    ip("link set near up")?;
    go.send(0).unwrap();
    reports.recv().unwrap()?;

    let mut samples = Vec::new();
    for round in 0..=rounds {
        let mut sample = Vec::new();
        for contender in Contender::ALL {
            received.store(0, Relaxed);
            let mut receiving = open(contender)?;
            go.send(beacons).unwrap();
            let (cpu, wall) = receiving(beacons, &received);
            let sending = reports.recv().unwrap()?;
            let each = |nanoseconds: f64| nanoseconds / beacons as f64;
            sample.push(Sample { receiving: each(cpu), both: each(cpu + sending), rate: 1e9 / each(wall) });
        }
        // The first round warms up.
        if round > 0 {
            samples.push(<[Sample; 4]>::try_from(sample).unwrap_or_else(|_| unreachable!("one for each")));
        }
    }
    drop(go);
    sender.join().unwrap();
    Ok(samples)
}

/// Receives so many beacons, counting into the cell the sender watches; returns CPU and wall time in nanoseconds, from the
/// first beacon on.
type Receive = Box<dyn FnMut(u64, &AtomicU64) -> (f64, f64)>;

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
    Ok(Box::new(move |beacons, received| {
        let mut tally = Tally::default();
        while tally.count < beacons {
            if receiver.receive(|_, beacon| tally.add(beacon)).unwrap() == 0 {
                receiver.wait(LIMIT).unwrap();
            } else {
                received.store(tally.count, Relaxed);
            }
        }
        let counters = receiver.counters();
        assert_eq!(if mode == Mode::Socket { counters.through_socket } else { counters.bypassed }, beacons);
        tally.finish(beacons)
    }))
}

fn recv_from(socket: UdpSocket) -> impl FnMut(u64, &AtomicU64) -> (f64, f64) {
    move |beacons, received| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let socket = tokio::net::UdpSocket::from_std(socket.try_clone().unwrap()).unwrap();
            let (mut buffer, mut tally) = ([0; 2048], Tally::default());
            while tally.count < beacons {
                let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
                tally.add(&buffer[..length]);
                received.store(tally.count, Relaxed);
            }
            tally.finish(beacons)
        })
    }
}

/// A plain socket that holds a window of beacons.
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

/// What a receiver has seen.
#[derive(Default)]
struct Tally {
    count: u64,
    sum: u64,
    start: Option<(f64, Instant)>,
}

impl Tally {
    fn add(&mut self, beacon: &[u8]) {
        if self.count == 0 {
            self.start = Some((cpu_ns(), Instant::now()));
        }
        assert_eq!(beacon.len(), BEACON);
        self.sum += u64::from_le_bytes(*beacon.first_chunk().unwrap());
        self.count += 1;
    }

    /// Asserts that every number came once; returns CPU and wall time since the first, nanoseconds.
    fn finish(self, beacons: u64) -> (f64, f64) {
        assert_eq!((self.count, self.sum), (beacons, beacons * (beacons - 1) / 2));
        let (cpu, wall) = self.start.unwrap();
        (cpu_ns() - cpu, wall.elapsed().as_nanos() as f64)
    }
}

/// Sends so many beacons, never more than a window ahead of the receiver; returns the CPU time it took without the
/// waiting, nanoseconds.
fn send(beacons: u64, received: &AtomicU64) -> f64 {
    let socket = UdpSocket::bind("10.98.0.1:0").unwrap();
    socket.connect(LISTEN).unwrap();
    let start = Instant::now();
    let (mut sent, mut spent) = (0, 0.0);
    let mut bytes = [[0x5a_u8; BEACON]; BURST];
    while sent < beacons {
        while sent + BURST as u64 > received.load(Relaxed) + WINDOW {
            std::hint::spin_loop();
            assert!(start.elapsed() < LIMIT, "{sent} beacons sent, {} received", received.load(Relaxed));
        }
        let before = cpu_ns();
        let count = BURST.min(usize::try_from(beacons - sent).unwrap());
        for (beacon, number) in bytes.iter_mut().zip(sent..) {
            *beacon.first_chunk_mut().unwrap() = number.to_le_bytes();
        }
        sent += burst(&socket, &mut bytes, count);
        spent += cpu_ns() - before;
    }
    spent
}

/// Sends the first `count` beacons in one system call; returns how many it took.
fn burst(socket: &UdpSocket, beacons: &mut [[u8; BEACON]; BURST], count: usize) -> u64 {
    let part = |beacon: &mut [u8; BEACON]| libc::iovec { iov_base: beacon.as_mut_ptr().cast(), iov_len: BEACON };
    let mut parts = beacons.each_mut().map(part);
    // SAFETY: all-zero is a valid `mmsghdr`.
    let mut headers: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
    for (header, part) in headers.iter_mut().zip(&mut parts) {
        header.msg_hdr.msg_iov = part;
        header.msg_hdr.msg_iovlen = 1;
    }
    let (fd, count) = (socket.as_raw_fd(), u32::try_from(count).unwrap());
    // SAFETY: `count` headers, each with one buffer of the length given; all live to the end of the call.
    let done = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count, 0) };
    u64::try_from(done).expect("a beacon cannot be sent")
}

/// CPU time of this thread, nanoseconds.
fn cpu_ns() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    let got = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(got, 0);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn set_up_far_end() -> Result<f64, String> {
    ip("addr add 10.98.0.1/24 dev far")?;
    ip("link set far up")?;
    ip("neigh replace 10.98.0.2 lladdr 02:00:00:00:00:02 dev far nud permanent")?;
    Ok(0.0)
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
