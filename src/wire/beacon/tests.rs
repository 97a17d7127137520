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
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
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
    for (golden, key) in [(KEYED, Some(&key)), (UNKEYED, None)] {
        assert_eq!(hex(&encoded(&example(), key)), golden);
        let bytes = bytes(golden);
        let beacon = Beacon::parse(&bytes).unwrap();
        let read = Message { head: beacon.head(), load: beacon.load(), facts: beacon.facts() };
        assert_eq!(read, example());
        assert_eq!(beacon.key_id(), u32::from(key.is_some()));
        assert_eq!(beacon.is_signed_by(&self::key()), key.is_some());
        assert_eq!(beacon.facts_bytes(), &bytes[104..bytes.len() - MAC_BYTES]);
        assert_eq!(beacon.url(), Some("http://10.0.0.7:8000"));
    }
}
