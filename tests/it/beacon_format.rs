//! The format of beacons, as others write it: the example in Python is read here and its signature holds.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use emberlane::wire::beacon::{Beacon, Facts, Head, Load, SenderId};
use emberlane::wire::key::Keys;

use crate::support::root;

const KEYS: &str =
    "# two keys; the first signs\n\n7:000102030405060708090a0b0c0d0e0f\n6:ffffffffffffffffffffffffffffffff\n";

/// What the example sends when it is run, with the arguments `more` behind its gateway and URL.
fn sent_by_python(listen: &str, more: &[&str]) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind(listen).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let gateway = socket.local_addr().unwrap().to_string();
    let script = root().join("deploy/beacon.py");
    let arguments = [&[gateway.as_str(), "http://Engine.example:8000"], more].concat();
    let output = Command::new("python3").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let receive = || {
        let mut datagram = vec![0; 2048];
        let length = socket.recv(&mut datagram).unwrap();
        datagram.truncate(length);
        datagram
    };
    (0..3).map(|_| receive()).collect()
}

#[expect(clippy::disallowed_methods, reason = "compares with the clock of another process")]
fn unix_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

#[test]
fn the_python_example_signs_beacons_that_are_read_here() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    std::fs::write(&file, KEYS).unwrap();
    let keys = Keys::parse(KEYS).unwrap();
    let before = unix_ns();
    let datagrams = sent_by_python("127.0.0.1:0", &[file.to_str().unwrap()]);
    let first = Beacon::parse(&datagrams[0]).unwrap().head();
    for (count, datagram) in (0..).zip(&datagrams) {
        let beacon = Beacon::parse(datagram).unwrap();
        assert_eq!(beacon.key_id(), 7);
        assert!(beacon.is_signed_by(keys.get(7).unwrap()) && !beacon.is_signed_by(keys.get(6).unwrap()));
        let Head { sender, incarnation, sequence, sent_unix_ns, period_us } = beacon.head();
        assert_eq!((sender, period_us), (SenderId::of("engine.example:8000"), 50_000));
        assert_eq!((incarnation, sequence), (first.incarnation, first.incarnation + u64::from(count)));
        assert!((before..=unix_ns()).contains(&sent_unix_ns));
        let load = Load { ready: true, running: count, kv_usage: Some(0.25), ..Load::default() };
        assert_eq!(beacon.load(), load);
        let url = Some("http://Engine.example:8000".to_owned());
        assert_eq!(beacon.facts(), Facts { url, ..Facts::default() });
    }
}

#[test]
fn without_a_key_file_it_signs_nothing() {
    let listen = if UdpSocket::bind("[::1]:0").is_ok() { "[::1]:0" } else { "127.0.0.1:0" };
    for datagram in sent_by_python(listen, &[]) {
        assert_eq!(Beacon::parse(&datagram).unwrap().key_id(), 0);
    }
}
