//! Beacons against bytes that were made by other means (Python's `struct` and `hmac`, as in `deploy/beacon.py`), cut at
//! every length, with every bit turned, and made up.

use super::*;
use crate::wire::key::{Key, MAC_BYTES};

/// The example of the specification.
const KEYED: &str = "\
    454d424c0100c10001000000fd0100000451589822c68b4f00605ba09d37060083f6f3a09d37060080b5ebc1bc3f4918\
    50c300000c0000000300000068890900002000001000000000100000010000004d0000000000000040420f0000000000\
    c02709000000000001001400687474703a2f2f31302e302e302e373a3830303002000400766c6c6d0700040000010000\
    030005006c6c616d610400030073716c05000300726167060006007a6f6e653d61eb41321d504fd2a12f332a1cb5f98d\
    55";
/// The same, not signed.
const UNKEYED: &str = "\
    454d424c0100c10000000000fd0100000451589822c68b4f00605ba09d37060083f6f3a09d37060080b5ebc1bc3f4918\
    50c300000c0000000300000068890900002000001000000000100000010000004d0000000000000040420f0000000000\
    c02709000000000001001400687474703a2f2f31302e302e302e373a3830303002000400766c6c6d0700040000010000\
    030005006c6c616d610400030073716c05000300726167060006007a6f6e653d61000000000000000000000000000000\
    00";

fn key() -> Key {
    Key::new(1, &std::array::from_fn::<u8, 16, _>(|at| at.try_into().unwrap())).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let (pairs, _) = hex.as_bytes().as_chunks::<2>();
    pairs.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn example() -> Message {
    let texts = |text: &str| vec![text.to_owned()];
    Message {
        head: Head {
            sender: SenderId::of("10.0.0.7:8000"),
            incarnation: 1_750_000_000_000_000,
            sequence: 1_750_000_010_000_003,
            sent_unix_ns: 1_750_000_010_150_000_000,
            period_us: 50_000,
        },
        load: Load {
            ready: true,
            draining: false,
            running: 12,
            waiting: 3,
            kv_usage: Some(0.625),
            kv_blocks: Some(8192),
            kv_block_tokens: Some(16),
            prefill_tokens: Some(4096),
            cache_resets: 1,
            blocks_evicted: Some(77),
            prefix_tokens_queried: Some(1_000_000),
            prefix_tokens_hit: Some(600_000),
        },
        facts: Facts {
            url: Some("http://10.0.0.7:8000".to_owned()),
            engine: Some("vllm".to_owned()),
            slots: Some(256),
            models: texts("llama"),
            adapters_loaded: texts("sql"),
            adapters_waiting: texts("rag"),
            labels: vec![("zone".to_owned(), "a".to_owned())],
        },
    }
}

fn encoded(message: &Message, key: Option<&Key>) -> Vec<u8> {
    let mut out = vec![7; 3];
    message.encode(key, &mut out).unwrap();
    out
}

#[test]
fn golden_bytes_are_written_and_read() {
    let key = key();
    for (golden, signer) in [(KEYED, Some(&key)), (UNKEYED, None)] {
        assert_eq!(hex(&encoded(&example(), signer)), golden);
        let bytes = bytes(golden);
        let beacon = Beacon::parse(&bytes).unwrap();
        let read = Message { head: beacon.head(), load: beacon.load(), facts: beacon.facts() };
        assert_eq!(read, example());
        assert_eq!(beacon.key_id(), u32::from(signer.is_some()));
        assert_eq!(beacon.is_signed_by(&key), signer.is_some());
        assert_eq!(beacon.facts_bytes(), &bytes[104..bytes.len() - MAC_BYTES]);
        assert_eq!(beacon.url(), Some("http://10.0.0.7:8000"));
    }
}

#[test]
fn the_specification_shows_the_golden_bytes() {
    let page = include_str!("../beacon.rs");
    let lines = page.lines().filter_map(|line| line.strip_prefix("//! 00"));
    let shown: String = lines.map(|line| line.split("  ").nth(1).unwrap().replace(' ', "")).collect();
    assert_eq!(shown, KEYED);
    assert!(page.contains(&format!("`10.0.0.7:8000` is\n//! `{:#018x}`", SenderId::of("10.0.0.7:8000").0)));
}

#[test]
fn a_beacon_cut_anywhere_is_refused() {
    for golden in [KEYED, UNKEYED] {
        let whole = bytes(golden);
        for length in 0..whole.len() {
            let cut = &whole[..length];
            let expected = if length < DATAGRAM_MIN { BeaconFault::TooShort } else { BeaconFault::Truncated };
            assert_eq!(Beacon::parse(cut).unwrap_err(), expected, "{length} bytes");
            // Cut, and its length made to fit: a head that is whole may do, but the MAC does not.
            let mut cut = cut.to_vec();
            if let Some(place) = cut.get_mut(6..8) {
                place.copy_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
            }
            assert!(!Beacon::parse(&cut).is_ok_and(|beacon| beacon.is_signed_by(&key())), "{length} bytes");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(Beacon::parse(&longer).unwrap_err(), BeaconFault::Trailing);
        longer.resize(DATAGRAM_MAX + 1, 0);
        assert_eq!(Beacon::parse(&longer).unwrap_err(), BeaconFault::TooLong);
    }
}

#[test]
fn a_keyed_beacon_with_any_bit_turned_is_refused() {
    let whole = bytes(KEYED);
    for bit in 0..whole.len() * 8 {
        let mut turned = whole.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        assert!(!Beacon::parse(&turned).is_ok_and(|beacon| beacon.is_signed_by(&key())), "bit {bit}");
    }
}

/// The example, not signed, with other bytes at `at`.
fn with(at: usize, other: &[u8]) -> Result<Vec<u8>, BeaconFault> {
    let mut bytes = bytes(UNKEYED);
    bytes[at..at + other.len()].copy_from_slice(other);
    Beacon::parse(&bytes).map(|_| bytes.clone())
}

/// The example, not signed, with other facts.
fn with_facts(facts: &[u8]) -> Result<(Facts, FactKinds), BeaconFault> {
    let mut bytes = bytes(UNKEYED)[..104].to_vec();
    bytes.extend_from_slice(facts);
    bytes.extend_from_slice(&[0; MAC_BYTES]);
    let length = u16::try_from(bytes.len()).unwrap();
    bytes[6..8].copy_from_slice(&length.to_le_bytes());
    Beacon::parse(&bytes).map(|beacon| (beacon.facts(), beacon.fact_kinds()))
}

#[test]
fn heads_out_of_bounds_are_refused_and_bits_to_come_are_not() {
    for (at, other, fault) in [
        (0, &b"EMBl"[..], BeaconFault::Magic),
        (4, &[2], BeaconFault::Version),
        (5, &[1], BeaconFault::MustUnderstand),
        (6, &[0, 0], BeaconFault::Trailing),
        (6, &[0xff, 0xff], BeaconFault::Truncated),
        (48, &[99, 0, 0, 0], BeaconFault::Period),
        (48, &[0x01, 0x87, 0x93, 0x03], BeaconFault::Period),
        (60, &[0x41, 0x42, 0x0f, 0], BeaconFault::KvUsage),
        (192, &[1], BeaconFault::MacWithoutKey),
    ] {
        assert_eq!(with(at, other).unwrap_err(), fault, "{other:?} at {at}");
    }
    with(48, &[100, 0, 0, 0]).unwrap();
    with(48, &[0x00, 0x87, 0x93, 0x03]).unwrap();
    with(60, &[0x40, 0x42, 0x0f, 0]).unwrap();
    let later = with(12, &[0xfd, 0xff, 0xff, 0xff]).unwrap();
    assert_eq!(Beacon::parse(&later).unwrap().load(), example().load);
    // What is not known is not looked at.
    let mut unknown = bytes(UNKEYED);
    unknown[12..16].fill(0);
    unknown[60..64].fill(0xff);
    let load = Beacon::parse(&unknown).unwrap().load();
    assert_eq!(load, Load { running: 12, waiting: 3, cache_resets: 1, ..Load::default() });
}

#[test]
fn facts_that_are_not_as_specified_are_refused() {
    for (facts, fault) in [
        (&b"\x01\0\x02"[..], BeaconFault::TlvOverrun),
        (b"\x01\0\x02\0a", BeaconFault::TlvOverrun),
        (b"\x63\0\x01\0", BeaconFault::TlvOverrun),
        (b"\x01\0\0\0", BeaconFault::Text),
        (b"\x03\0\x01\0\n", BeaconFault::Text),
        (b"\x03\0\x02\0\xc2\x85", BeaconFault::Text),
        (b"\x03\0\x01\0\xff", BeaconFault::Text),
        (b"\x06\0\x01\0k", BeaconFault::Label),
        (b"\x06\0\x02\0=v", BeaconFault::Label),
        (b"\x07\0\x02\0\x01\0", BeaconFault::Slots),
        (b"\x07\0\x04\0\0\0\0\0", BeaconFault::Slots),
        (b"\x02\0\x01\0a\x02\0\x01\0a", BeaconFault::Twice),
        (b"\x03\0\0\0\x03\0\x01\0a", BeaconFault::Twice),
        (b"\x03\0\x01\0a\x03\0\0\0", BeaconFault::Twice),
    ] {
        assert_eq!(with_facts(facts).unwrap_err(), fault, "{facts:?}");
    }
    let (facts, kinds) = with_facts(b"\x63\0\x01\0!\x03\0\0\0\x03\x01\0\0\x06\0\x04\0k=v=").unwrap();
    assert_eq!(facts, Facts { labels: vec![("k".to_owned(), "v=".to_owned())], ..Facts::default() });
    assert!(kinds.contains(FactKind::Model) && kinds.contains(FactKind::Label));
    assert!(!kinds.contains(FactKind::Url) && !kinds.contains(FactKind::Slots));
}

#[test]
fn what_cannot_be_said_is_brought_within_bounds_or_left_out() {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let mut message = example();
    message.head.period_us = 0;
    message.load.kv_usage = Some(7.5);
    message.facts = Facts {
        url: Some(String::new()),
        engine: Some("a\tb".to_owned()),
        slots: Some(0),
        models: texts(&["a", "", "b\0"]),
        adapters_loaded: texts(&[""]),
        adapters_waiting: texts(&["", ""]),
        labels: vec![("a=b".to_owned(), "c".to_owned()), (String::new(), "d".to_owned())],
    };
    let bytes = encoded(&message, None);
    let beacon = Beacon::parse(&bytes).unwrap();
    assert_eq!((beacon.head().period_us, beacon.load().kv_usage), (*PERIOD_US.start(), Some(1.0)));
    assert_eq!(beacon.facts(), Facts { models: texts(&["a"]), ..Facts::default() });
    assert!(beacon.fact_kinds().contains(FactKind::AdapterLoaded));
    assert!(!beacon.fact_kinds().contains(FactKind::AdapterWaiting));
    for (usage, expected) in [(f32::NAN, None), (-1.0, Some(0.0)), (f32::INFINITY, Some(1.0))] {
        message.load.kv_usage = Some(usage);
        let bytes = encoded(&message, None);
        assert_eq!(Beacon::parse(&bytes).unwrap().load().kv_usage, expected);
    }
}

#[test]
fn a_beacon_fills_a_datagram_and_no_more() {
    let mut message = example();
    message.facts = Facts { models: vec!["m".repeat(DATAGRAM_MAX - DATAGRAM_MIN - 4)], ..Facts::default() };
    let full = encoded(&message, Some(&key()));
    assert_eq!(full.len(), DATAGRAM_MAX);
    assert_eq!(Beacon::parse(&full).unwrap().facts(), message.facts);
    for length in [DATAGRAM_MAX - DATAGRAM_MIN - 3, 70_000] {
        message.facts.models = vec!["m".repeat(length)];
        let mut out = vec![1];
        assert_eq!(message.encode(None, &mut out), Err(Oversize { bytes: DATAGRAM_MIN + 4 + length }));
        assert!(out.is_empty());
    }
}

#[test]
fn facts_that_are_too_long_come_in_parts_each_kind_whole() {
    assert_eq!(example().facts.parts(), [example().facts]);
    assert_eq!(Facts::default().parts(), []);
    let names = |count: usize| (0..count).map(|n| format!("{n:036}")).collect::<Vec<_>>(); // 40 bytes each
    let labels = vec![("k".repeat(9), "v".repeat(990))];
    let facts = Facts { models: names(20), adapters_loaded: names(1000), labels: labels.clone(), ..example().facts };
    let parts = facts.parts();
    let [first, second, third] = &*parts else { panic!("{} parts", parts.len()) };
    assert_eq!(first, &Facts { adapters_loaded: Vec::new(), labels: Vec::new(), ..facts });
    assert_eq!(second, &Facts { adapters_loaded: names(27), ..Facts::default() });
    assert_eq!(third, &Facts { labels, ..Facts::default() });
    for part in parts {
        assert!(Message { facts: part, ..example() }.encode(None, &mut Vec::new()).is_ok());
    }
    let endless = Facts { url: Some("u".repeat(2000)), models: vec!["m".repeat(2000)], ..Facts::default() };
    assert_eq!(endless.parts(), []);
}

/// Made-up messages that can be said as they are.
fn any_message(r: &mut fastrand::Rng) -> Message {
    let text = |r: &mut fastrand::Rng| (0..r.usize(1..9)).map(|_| ['a', 'é', '=', '🔥', ' '][r.usize(..5)]).collect();
    let list = |r: &mut fastrand::Rng| (0..r.usize(0..4)).map(|_| text(r)).collect::<Vec<String>>();
    let small = |r: &mut fastrand::Rng| r.bool().then(|| r.u32(..));
    let large = |r: &mut fastrand::Rng| r.bool().then(|| r.u64(..));
    Message {
        head: Head {
            sender: SenderId(r.u64(..)),
            incarnation: r.u64(..),
            sequence: r.u64(..),
            sent_unix_ns: r.u64(..),
            period_us: r.u32(PERIOD_US),
        },
        load: Load {
            ready: r.bool(),
            draining: r.bool(),
            running: r.u32(..),
            waiting: r.u32(..),
            kv_usage: r.bool().then(|| f32::from(r.u16(..=1000)) / 1000.0),
            kv_blocks: small(r),
            kv_block_tokens: small(r),
            prefill_tokens: small(r),
            cache_resets: r.u32(..),
            blocks_evicted: large(r),
            prefix_tokens_queried: large(r),
            prefix_tokens_hit: large(r),
        },
        facts: Facts {
            url: r.bool().then(|| text(r)),
            engine: r.bool().then(|| text(r)),
            slots: r.bool().then(|| r.u32(1..)),
            models: list(r),
            adapters_loaded: list(r),
            adapters_waiting: list(r),
            labels: list(r).into_iter().map(|value| (format!("k{}", r.u8(..)), value)).collect(),
        },
    }
}

#[test]
fn what_is_written_is_read() {
    bolero::check!().with_type::<u64>().for_each(|&seed| {
        let mut r = fastrand::Rng::with_seed(seed);
        let message = any_message(&mut r);
        let signer = r.bool().then(key);
        let bytes = encoded(&message, signer.as_ref());
        let beacon = Beacon::parse(&bytes).unwrap();
        assert_eq!(Message { head: beacon.head(), load: beacon.load(), facts: beacon.facts() }, message);
        assert_eq!(signer.is_some(), beacon.is_signed_by(&key()));
    });
}

/// The fuzz target of the reader: whatever the bytes are, they are refused or say something that can be said again.
#[test]
fn any_bytes_are_an_answer() {
    bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(form, noise)| {
        // Noise alone seldom gets beyond the magic: let it also be a head and facts, or facts behind a good head.
        let mut bytes = match form % 4 {
            0 => noise.clone(),
            1 => [&bytes(UNKEYED)[..8], noise].concat(),
            2 => [&bytes(UNKEYED)[..104], noise, &[0; MAC_BYTES]].concat(),
            _ => bytes(KEYED).iter().zip(noise.iter().chain(std::iter::repeat(&0))).map(|(a, b)| a ^ b).collect(),
        };
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes();
        if let (true, Some(place)) = (form & 4 != 0, bytes.get_mut(6..8)) {
            place.copy_from_slice(&length);
        }
        let Ok(beacon) = Beacon::parse(&bytes) else { return };
        let _ = beacon.is_signed_by(&key());
        let message = Message { head: beacon.head(), load: beacon.load(), facts: beacon.facts() };
        let again = encoded(&message, None);
        assert!(again.len() <= bytes.len());
        let again = Beacon::parse(&again).unwrap();
        assert_eq!((again.head(), again.load(), again.facts()), (message.head, message.load, message.facts));
    });
}
