//! Tests over loopback; what needs interfaces of its own is in the integration test `bypass`.

use super::*;
use std::net::UdpSocket;

fn open(listen: &str, bypass: Bypass, threads: usize) -> Vec<Receiver> {
    let config = ReceiveConfig { listen: listen.parse().unwrap(), interface: None, bypass, busy_poll: false };
    Receiver::open(&config, threads).unwrap()
}

#[test]
fn loopback_comes_through_the_socket_and_says_why() {
    let mut receiver = open("127.0.0.1:0", Bypass::Auto, 1).remove(0);
    assert_eq!(receiver.mode(), Mode::Socket);
    assert!(receiver.fallback().unwrap().contains("name the interface"), "{:?}", receiver.fallback());
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut heard = Vec::new();
    for number in 0..300_u32 {
        sender.send_to(&number.to_le_bytes(), receiver.local_addr()).unwrap();
    }
    while heard.len() < 300 {
        receiver.wait(Duration::from_secs(5)).unwrap();
        let count = receiver
            .receive(|from, bytes| {
                assert!(from.is_loopback());
                heard.push(u32::from_le_bytes(bytes.try_into().unwrap()));
            })
            .unwrap();
        assert!(count <= udp::BATCH);
    }
    assert_eq!(heard, (0..300).collect::<Vec<_>>());
    assert_eq!(receiver.counters(), Counters { through_socket: 300, ..Counters::default() });
    assert_eq!(receiver.loss(), None);
}

#[test]
fn a_waker_ends_a_wait_from_any_thread_and_even_before_it() {
    let mut receiver = open("127.0.0.1:0", Bypass::Off, 1).remove(0);
    assert_eq!(receiver.fallback(), None);
    receiver.receive(|_, _| {}).unwrap();
    let waker = receiver.waker();
    waker.wake();
    waker.wake();
    receiver.wait(Duration::from_secs(60)).unwrap();
    let other = std::thread::spawn(move || waker.wake());
    receiver.wait(Duration::from_secs(60)).unwrap();
    other.join().unwrap();
    // Both are heard: this wait only ends by its time.
    receiver.wait(Duration::from_millis(1)).unwrap();
    assert_eq!(receiver.receive(|_, _| {}).unwrap(), 0);
}

#[test]
fn naps_are_taken_while_they_bring_several_datagrams() {
    let mut naps = Naps::default();
    let mut taken = |heard: usize| {
        naps.heard = heard;
        naps.is_due()
    };
    assert!(!taken(0));
    assert!((0..10).all(|_| taken(50)));
    // One at a time: a nap is tried now and then.
    let tried = (0..650).filter(|_| taken(1)).count();
    assert!((9..=11).contains(&tried), "{tried}");
    assert!((0..100).filter(|_| taken(50)).count() >= 35);
}

#[test]
fn busy_waits_return_soon() {
    let config =
        ReceiveConfig { listen: "127.0.0.1:0".parse().unwrap(), interface: None, bypass: Bypass::Off, busy_poll: true };
    let mut receiver = Receiver::open(&config, 1).unwrap().remove(0);
    receiver.receive(|_, _| {}).unwrap();
    receiver.wait(Duration::from_secs(3600)).unwrap();
}

#[test]
fn threads_have_a_receiver_each_but_groups_only_one() {
    assert_eq!(open("127.0.0.1:0", Bypass::Off, 3).len(), 3);
    assert_eq!(open("239.255.77.1:0", Bypass::Off, 3).len(), 1);
}

#[test]
fn what_was_asked_for_by_name_and_cannot_be_had_is_an_error() {
    let mut config = ReceiveConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        interface: None,
        bypass: Bypass::Native,
        busy_poll: false,
    };
    let error = Receiver::open(&config, 1).unwrap_err().to_string();
    assert!(error.starts_with("beacons.bypass is native, but 127.0.0.1 is not"), "{error}");
    config.bypass = Bypass::Off;
    config.interface = Some("none0".to_owned());
    let error = Receiver::open(&config, 1).unwrap_err().to_string();
    assert_eq!(error, "there is no network interface \"none0\"; `ip link` lists them");
}
