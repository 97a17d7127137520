//! Beacons past the kernel, for real: two network namespaces of the test's own making, a virtual cable (veth) between
//! them, datagrams from one end to a `Receiver` at the other. Every datagram is numbered and must come exactly once.
//!
//! Namespaces belong to threads and vanish with them: nothing is left behind, nothing of the machine's own network is
//! touched. Needs root and `ip` (iproute2). Skips say why; where `CI` or `EMBERLANE_REQUIRE_BYPASS` is set they fail.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver as Inbox, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use emberlane::config::Bypass;
use emberlane::load::receive::{Counters, Mode, ReceiveConfig, ReceiveError, Receiver};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use crate::support::process::Process;
use crate::support::time::{now, wait_for};

const LIMIT: Duration = Duration::from_secs(10);
/// Addresses of the near end; the far end has 10.98.0.1 and fd98::1.
const NEAR_V4: &str = "10.98.0.2:7946";
const NEAR_V6: &str = "[fd98::2]:7946";
/// Set for the process that `killed` kills.
const HOLD: &str = "EMBERLANE_BYPASS_HOLD";

fn skip(reason: &str) {
    assert!(std::env::var_os("EMBERLANE_REQUIRE_BYPASS").is_none(), "this must run here: bypass: {reason}");
    crate::support::skip(&format!("bypass: {reason}"));
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip (of iproute2): {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Moves this thread into a network namespace of its own.
fn own_network() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace: {error}"))?;
    ip("link set lo up")
}

/// Work for the thread at the far end.
type Task = Box<dyn FnOnce() + Send>;

/// The cable: `near` in this thread's namespace, `far` in that of a thread which lives as long as this.
struct Cable {
    tasks: Option<Sender<Task>>,
    far: Option<JoinHandle<()>>,
}

impl Cable {
    /// Lays a cable with `queues` receive queues at each end; `None`, having said why, where that is not possible.
    fn lay(queues: u32) -> Option<Self> {
        Self::try_lay(queues).map_err(|reason| skip(&reason)).ok()
    }

    fn try_lay(queues: u32) -> Result<Self, String> {
        let (tell, told) = channel();
        let (tasks, inbox): (Sender<Task>, Inbox<Task>) = channel();
        let far = std::thread::spawn(move || {
            let answer = own_network().map(|()| nix::unistd::gettid());
            let is_ready = answer.is_ok();
            tell.send(answer).unwrap();
            if is_ready {
                inbox.iter().for_each(|task| task());
            }
        });
        let far_thread = told.recv().unwrap()?;
        let cable = Self { tasks: Some(tasks), far: Some(far) };
        own_network()?;
        let ends = format!("numrxqueues {queues} numtxqueues {queues}");
        ip(&format!(
            "link add near address 02:00:00:00:00:02 {ends} type veth peer name far address 02:00:00:00:00:01 {ends}"
        ))?;
        ip(&format!("link set far netns {far_thread}"))?;
        ip("addr add 10.98.0.2/24 dev near")?;
        ip("addr add 10.98.0.3/24 dev near")?;
        ip("addr add fd98::2/64 dev near nodad")?;
        ip("link set near up")?;
        cable.at_far_end(|| {
            ip("addr add 10.98.0.1/24 dev far")?;
            ip("addr add fd98::1/64 dev far nodad")?;
            ip("link set far up")?;
            // Known neighbours: nothing is lost or late while they are asked for.
            for address in ["10.98.0.2", "10.98.0.3", "fd98::2"] {
                ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:02 dev far nud permanent"))?;
            }
            ip("route add 239.0.0.0/8 dev far")
        })?;
        Ok(cable)
    }

    /// Runs `work` in the far namespace. A socket made there stays there, whoever uses it.
    fn at_far_end<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let task = move || tell.send(work()).unwrap();
        self.tasks.as_ref().unwrap().send(Box::new(task)).unwrap();
        told.recv().unwrap()
    }

    /// A socket at the far end, of the family of `near`.
    fn sender(&self, near: SocketAddr) -> UdpSocket {
        let address: SocketAddr = if near.is_ipv4() { "10.98.0.1:0" } else { "[fd98::1]:0" }.parse().unwrap();
        self.at_far_end(move || UdpSocket::bind(address).unwrap())
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        drop(self.tasks.take());
        self.far.take().map(JoinHandle::join);
    }
}

fn try_open(listen: &str, bypass: Bypass, threads: usize) -> Result<Vec<Receiver>, ReceiveError> {
    let interface = Some("near".to_owned());
    let config = ReceiveConfig { listen: listen.parse().unwrap(), interface, bypass, busy_poll: false };
    Receiver::open(&config, threads)
}

/// A receiver that comes in as `mode`; `None`, having said why, where the kernel does not let it.
fn open(listen: &str, mode: Mode) -> Option<Receiver> {
    let bypass = match mode {
        Mode::Native => Bypass::Native,
        Mode::Skb => Bypass::Skb,
        Mode::Socket => Bypass::Off,
    };
    match try_open(listen, bypass, 1) {
        Ok(mut receivers) => {
            assert_eq!((receivers.len(), receivers[0].mode()), (1, mode));
            assert_eq!(receivers[0].fallback(), None);
            receivers.pop()
        }
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

/// A beacon-sized datagram with a number.
fn numbered(number: u64) -> Vec<u8> {
    let mut datagram = number.to_le_bytes().to_vec();
    datagram.resize(128 + usize::try_from(number % 7).unwrap() * 150, 0x5a);
    datagram
}

/// Receives until all of `numbers` have come, each once, whole, and from `from`.
fn expect_all(receivers: &mut [Receiver], numbers: std::ops::Range<u64>, from: IpAddr) {
    let mut heard = Vec::new();
    let start = now();
    let wanted = usize::try_from(numbers.end - numbers.start).unwrap();
    while heard.len() < wanted {
        assert!(start.elapsed() < LIMIT, "{} of {wanted} came: {:?}", heard.len(), receivers[0].counters());
        for receiver in &mut *receivers {
            receiver.wait(Duration::from_millis(5)).unwrap();
            receiver
                .receive(|sender, datagram| {
                    let number = u64::from_le_bytes(*datagram.first_chunk().unwrap());
                    assert_eq!(sender, from);
                    assert_eq!(datagram, numbered(number));
                    heard.push(number);
                })
                .unwrap();
        }
    }
    heard.sort_unstable();
    assert_eq!(heard, numbers.collect::<Vec<_>>());
}

/// Nothing comes that should not.
fn expect_silence(receiver: &mut Receiver) {
    receiver.wait(Duration::from_millis(20)).unwrap();
    assert_eq!(receiver.receive(|_, _| {}).unwrap(), 0);
}

/// Beacons of one family come by `mode`, and by nothing else; other ports and addresses notice nothing.
fn beacons_come(listen: &str, mode: Mode) {
    const ROUNDS: u64 = 20;
    const ROUND: u64 = 500;
    let Some(cable) = Cable::lay(1) else { return };
    let near: SocketAddr = listen.parse().unwrap();
    let Some(mut receiver) = open(listen, mode) else { return };
    let bystanders = ["10.98.0.2:7947", "10.98.0.3:7946", "[fd98::2]:7947"].map(|address| {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        (socket, cable.sender(address.parse().unwrap()))
    });
    let sender = cable.sender(near);
    let from = sender.local_addr().unwrap().ip();
    for round in 0..ROUNDS {
        let numbers = round * ROUND..(round + 1) * ROUND;
        for number in numbers.clone() {
            sender.send_to(&numbered(number), near).unwrap();
        }
        for (to, from) in &bystanders {
            from.send_to(&round.to_le_bytes(), to.local_addr().unwrap()).unwrap();
        }
        expect_all(std::slice::from_mut(&mut receiver), numbers, from);
        for (bystander, _) in &bystanders {
            let mut bytes = [0; 64];
            assert_eq!(bystander.recv(&mut bytes).unwrap(), 8);
            assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()), round);
        }
    }
    expect_silence(&mut receiver);
    let (bypassed, through_socket) = if mode == Mode::Socket { (0, 10_000) } else { (10_000, 0) };
    assert_eq!(receiver.counters(), Counters { bypassed, through_socket, ..Counters::default() });
}

#[test]
fn beacons_come_out_of_the_driver() {
    beacons_come(NEAR_V4, Mode::Native);
}

#[test]
fn beacons_over_ipv6_come_out_of_the_driver() {
    beacons_come(NEAR_V6, Mode::Native);
}

#[test]
fn beacons_come_out_of_the_generic_hook() {
    beacons_come(NEAR_V4, Mode::Skb);
}

#[test]
fn beacons_over_ipv6_come_out_of_the_generic_hook() {
    beacons_come(NEAR_V6, Mode::Skb);
}

#[test]
fn beacons_come_through_the_socket() {
    beacons_come(NEAR_V4, Mode::Socket);
}

#[test]
fn beacons_over_ipv6_come_through_the_socket() {
    beacons_come(NEAR_V6, Mode::Socket);
}

/// `auto` needs no interface's name where the address tells, and takes the best hook there is.
#[test]
fn the_best_way_is_found_alone() {
    let Some(cable) = Cable::lay(1) else { return };
    if open(NEAR_V4, Mode::Native).is_none() {
        return;
    }
    let near: SocketAddr = NEAR_V4.parse().unwrap();
    let config = ReceiveConfig { listen: near, interface: None, bypass: Bypass::Auto, busy_poll: true };
    let mut receivers = Receiver::open(&config, 1).unwrap();
    assert_eq!((receivers[0].mode(), receivers[0].fallback()), (Mode::Native, None));
    let sender = cable.sender(near);
    (0..100).for_each(|number| assert!(sender.send_to(&numbered(number), near).is_ok()));
    expect_all(&mut receivers, 0..100, [10, 98, 0, 1].into());
    // This machine's own beacons never reach the driver: they come through the socket of the same receiver.
    let own = UdpSocket::bind("10.98.0.3:0").unwrap();
    (0..100).for_each(|number| assert!(own.send_to(&numbered(number), near).is_ok()));
    expect_all(&mut receivers, 0..100, [10, 98, 0, 3].into());
    let expected = Counters { bypassed: 100, through_socket: 100, ..Counters::default() };
    assert_eq!(receivers[0].counters(), expected);
}

/// A second program finds the interface taken: `auto` goes on through the socket and says why, a name is an error.
#[test]
fn a_taken_interface_is_a_reason_to_use_the_socket() {
    let Some(cable) = Cable::lay(1) else { return };
    let Some(_first) = open("10.98.0.3:7946", Mode::Native) else { return };
    let mut second = try_open(NEAR_V4, Bypass::Auto, 1).unwrap();
    assert_eq!(second[0].mode(), Mode::Socket);
    assert!(second[0].fallback().unwrap().contains("something else has an XDP program"), "{:?}", second[0].fallback());
    let near: SocketAddr = NEAR_V4.parse().unwrap();
    let sender = cable.sender(near);
    (0..100).for_each(|number| assert!(sender.send_to(&numbered(number), near).is_ok()));
    expect_all(&mut second, 0..100, [10, 98, 0, 1].into());
    drop(second);
    let error = try_open(NEAR_V4, Bypass::Skb, 1).unwrap_err();
    assert!(matches!(error, ReceiveError::Bypass { mode: Bypass::Skb, .. }), "{error}");
}

#[test]
fn groups_are_joined_in_every_mode() {
    let Some(cable) = Cable::lay(1) else { return };
    for mode in Mode::ALL {
        for group in ["239.98.7.1:7946", "[ff15::98:1]:7946"] {
            let Some(receiver) = open(group, mode) else { return };
            let mut group: SocketAddr = group.parse().unwrap();
            let sender = cable.sender(group);
            if let SocketAddr::V6(v6) = &mut group {
                v6.set_scope_id(cable.at_far_end(|| nix_index("far")));
            }
            let from = sender.local_addr().unwrap().ip();
            (0..200).for_each(|number| assert!(sender.send_to(&numbered(number), group).is_ok()));
            let mut receivers = [receiver];
            expect_all(&mut receivers, 0..200, from);
            assert_eq!(receivers[0].counters().bypassed, if mode == Mode::Socket { 0 } else { 200 }, "{mode:?}");
        }
    }
}

/// The index of an interface in this thread's namespace.
fn nix_index(name: &str) -> u32 {
    emberlane::load::xdp::interface::by_name(name).unwrap().unwrap().index
}

#[test]
fn receive_queues_are_dealt_out_to_threads() {
    let Some(cable) = Cable::lay(2) else { return };
    if open(NEAR_V4, Mode::Native).is_none() {
        return;
    }
    let near: SocketAddr = NEAR_V4.parse().unwrap();
    let mut receivers = try_open(NEAR_V4, Bypass::Native, 2).unwrap();
    let senders: Vec<UdpSocket> = (0..32).map(|_| cable.sender(near)).collect();
    for number in 0..3_200 {
        senders[usize::try_from(number).unwrap() % 32].send_to(&numbered(number), near).unwrap();
    }
    expect_all(&mut receivers, 0..3_200, [10, 98, 0, 1].into());
    let bypassed: Vec<u64> = receivers.iter().map(|receiver| receiver.counters().bypassed).collect();
    assert_eq!(bypassed.iter().sum::<u64>(), 3_200, "{bypassed:?}");
}

/// A frame from the wire that claims to come from this machine would pass for a beacon that needs no key.
#[test]
fn forged_loopback_sources_are_not_heard() {
    let Some(cable) = Cable::lay(1) else { return };
    let Some(mut receiver) = open(NEAR_V4, Mode::Native) else { return };
    let near: SocketAddr = NEAR_V4.parse().unwrap();
    let sent = cable.at_far_end(move || {
        // IPPROTO_RAW: the header is ours to write; the kernel puts in its checksum.
        let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(255.into())).unwrap();
        let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 10, 98, 0, 2];
        packet.extend([0x9c, 0x40, 0x1f, 0x0a, 0, 16, 0, 0]);
        packet.extend(0_u64.to_le_bytes());
        raw.send_to(&packet, &near.into()).unwrap()
    });
    assert_eq!(sent, 36);
    wait_for("the forged frame to be counted", LIMIT, || {
        assert_eq!(receiver.receive(|_, _| panic!("heard")).unwrap(), 0);
        receiver.counters().bad_frames == 1
    });
}

#[test]
fn a_full_ring_drops_counts_and_recovers() {
    const SENT: u64 = 6_000;
    let Some(cable) = Cable::lay(1) else { return };
    let Some(mut receiver) = open(NEAR_V4, Mode::Native) else { return };
    let near: SocketAddr = NEAR_V4.parse().unwrap();
    let sender = cable.sender(near);
    (0..SENT).for_each(|number| assert!(sender.send_to(&numbered(number), near).is_ok()));
    let mut heard = 0;
    wait_for("all to be heard or counted", LIMIT, || {
        heard += receiver.receive(|_, _| {}).unwrap() as u64;
        let counters = receiver.counters();
        heard + counters.frame_drops + counters.ring_full == SENT
    });
    assert!((4096..SENT).contains(&heard), "{heard}");
    let counters = receiver.counters();
    (0..1_000).for_each(|number| assert!(sender.send_to(&numbered(number), near).is_ok()));
    expect_all(std::slice::from_mut(&mut receiver), 0..1_000, [10, 98, 0, 1].into());
    assert_eq!(receiver.counters().frame_drops, counters.frame_drops);
}

/// The interface goes while the receiver waits: it notices, says so once, and the socket goes on.
#[test]
fn a_lost_interface_leaves_the_socket() {
    let Some(_cable) = Cable::lay(1) else { return };
    let Some(mut receiver) = open(NEAR_V4, Mode::Native) else { return };
    expect_silence(&mut receiver);
    assert_eq!(receiver.loss(), None);
    ip("link del near").unwrap();
    wait_for("the loss to be noticed", LIMIT, || {
        receiver.wait(Duration::from_millis(20)).unwrap();
        receiver.receive(|_, _| {}).unwrap();
        receiver.mode() == Mode::Socket
    });
    assert!(receiver.loss().unwrap().contains("near"));
    assert_eq!(receiver.loss(), None);
    ip("addr add 10.98.0.2/32 dev lo").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    (0..100).for_each(|number| assert!(sender.send_to(&numbered(number), NEAR_V4).is_ok()));
    expect_all(std::slice::from_mut(&mut receiver), 0..100, [127, 0, 0, 1].into());
}

/// As above, with so much coming through the socket that the receiver never waits in vain.
#[test]
fn a_lost_interface_is_noticed_by_its_detours() {
    let Some(_cable) = Cable::lay(1) else { return };
    let Some(mut receiver) = open(NEAR_V4, Mode::Native) else { return };
    ip("link del near").unwrap();
    ip("addr add 10.98.0.2/32 dev lo").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..20 {
        let numbers = round * 100..(round + 1) * 100;
        numbers.clone().for_each(|number| assert!(sender.send_to(&numbered(number), NEAR_V4).is_ok()));
        expect_all(std::slice::from_mut(&mut receiver), numbers, [127, 0, 0, 1].into());
    }
    assert_eq!((receiver.mode(), receiver.counters().through_socket), (Mode::Socket, 2_000));
    assert!(receiver.loss().is_some());
}

/// Killed without a chance to tidy up, the process leaves the kernel's path as it was.
#[test]
fn the_kernel_takes_over_when_the_process_is_killed() {
    let Some(cable) = Cable::lay(1) else { return };
    if open(NEAR_V4, Mode::Native).is_none() {
        return;
    }
    let near: SocketAddr = NEAR_V4.parse().unwrap();
    let sender = cable.sender(near);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["bypass::hold", "--exact", "--nocapture"]).env(HOLD, NEAR_V4);
    let mut holder = Process::start("holder", &mut command);
    holder.wait_printed("holding", LIMIT);
    (0..100).for_each(|number| assert!(sender.send_to(&numbered(number), near).is_ok()));
    holder.wait_printed("heard 100", LIMIT);
    holder.signal(Signal::SIGKILL);
    holder.wait(LIMIT);
    wait_for("the program to be gone", LIMIT, || {
        let output = Command::new("ip").args(["link", "show", "dev", "near"]).output().unwrap();
        !String::from_utf8_lossy(&output.stdout).contains("xdp")
    });
    let plain = UdpSocket::bind(near).unwrap();
    plain.set_read_timeout(Some(LIMIT)).unwrap();
    for number in 0..100 {
        sender.send_to(&numbered(number), near).unwrap();
        let mut bytes = [0; 2048];
        let length = plain.recv(&mut bytes).unwrap();
        assert_eq!(bytes[..length], numbered(number));
    }
    drop(plain);
    // And the interface can be bypassed again, at once.
    assert!(open(NEAR_V4, Mode::Native).is_some());
}

/// Not a test but the process that `the_kernel_takes_over_when_the_process_is_killed` starts and kills.
#[test]
fn hold() {
    let Ok(listen) = std::env::var(HOLD) else { return };
    let mut receiver = open(&listen, Mode::Native).unwrap();
    eprintln!("holding");
    let mut heard = 0;
    loop {
        receiver.wait(LIMIT).unwrap();
        heard += receiver.receive(|_, _| {}).unwrap();
        if heard == 100 {
            eprintln!("heard {heard}");
            heard += 1;
        }
    }
}
