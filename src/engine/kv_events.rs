//! What an engine says of its KV cache as it changes: batches of events, in msgpack, over ZeroMQ. Read here is the
//! payload alone; sockets are elsewhere. Wanted are two figures, blocks evicted and caches emptied, so everything else
//! (hashes, token ids) is stepped over and nothing is kept.
//!
//! vLLM (`vllm/distributed/kv_events.py`) publishes three frames: the topic, a sequence number (8 bytes, big-endian,
//! from 0), and a batch; SGLang and TensorRT-LLM took the format over. A batch is an array `[time, [event, ...],
//! data-parallel rank]`. An event is a map with its kind under `type` (vLLM 0.32 as recorded in `tests/pages`), and was
//! an array that begins with it (vLLM 0.9 to 0.1x); batches as maps are taken too. Event kinds: `BlockStored`,
//! `BlockRemoved {block_hashes, medium, ..}`, `AllBlocksCleared`.

use rmp::Marker;
use rmp::decode::read_marker;

/// Longest payload that is read: a million token ids with room to spare.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Blocks stored in the GPU's cache.
    pub stored: u64,
    /// Blocks removed from the GPU's cache.
    pub evicted: u64,
    /// Times all blocks were cleared.
    pub cleared: u32,
    /// Events of kinds not known here.
    pub unknown: u32,
}

/// Why a payload cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventFault {
    /// More than [`PAYLOAD_BYTES_MAX`].
    #[error("the batch has {bytes} bytes, more than {PAYLOAD_BYTES_MAX}")]
    TooLong {
        /// How many.
        bytes: usize,
    },
    /// It ends too early, or holds a byte that msgpack does not use.
    #[error("the batch is not whole msgpack")]
    NotMsgpack,
    /// It is msgpack, but not a batch of events.
    #[error("the batch has not the shape [time, [events], rank]")]
    NotABatch,
}

/// Reads one payload.
///
/// # Errors
/// It is too long, not msgpack, or not a batch. What it said before it broke is not told: all of it counts as lost.
pub fn read_batch(payload: &[u8]) -> Result<Batch, EventFault> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(EventFault::TooLong { bytes: payload.len() });
    }
    let mut input = Input { rest: payload };
    let mut batch = Batch::default();
    match input.open()? {
        Open::Array(items) if items >= 2 => {
            input.skip(1)?;
            read_events(&mut input, &mut batch)?;
            input.skip(items - 2)?;
        }
        Open::Map(entries) => {
            let mut seen = false;
            for _ in 0..entries {
                if input.text()? == Some(b"events") {
                    read_events(&mut input, &mut batch)?;
                    seen = true;
                } else {
                    input.skip(1)?;
                }
            }
            if !seen {
                return Err(EventFault::NotABatch);
            }
        }
        Open::Array(_) | Open::Other => return Err(EventFault::NotABatch),
    }
    Ok(batch)
}

fn read_events(input: &mut Input<'_>, batch: &mut Batch) -> Result<(), EventFault> {
    let Open::Array(events) = input.open()? else { return Err(EventFault::NotABatch) };
    for _ in 0..events {
        let event = match input.open()? {
            Open::Array(items) => array_event(input, items)?,
            Open::Map(entries) => map_event(input, entries)?,
            Open::Other => return Err(EventFault::NotABatch),
        };
        let blocks = if event.is_elsewhere { 0 } else { event.blocks };
        match event.kind {
            Some(b"BlockStored") => batch.stored += blocks,
            Some(b"BlockRemoved") => batch.evicted += blocks,
            Some(b"AllBlocksCleared") => batch.cleared = batch.cleared.saturating_add(1),
            Some(_) | None => batch.unknown = batch.unknown.saturating_add(1),
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, Default)]
struct Event<'p> {
    kind: Option<&'p [u8]>,
    blocks: u64,
    /// On another medium than the GPU, such as host memory.
    is_elsewhere: bool,
}

/// `[kind, block_hashes, medium?, ..]` for removals, `[kind, block_hashes, parent, token_ids, ..]` for what is stored:
/// the medium of an array is read for removals only, whose second field it is.
fn array_event<'p>(input: &mut Input<'p>, items: u64) -> Result<Event<'p>, EventFault> {
    let mut event = Event::default();
    for index in 0..items {
        match index {
            0 => event.kind = input.text()?,
            1 => event.blocks = input.count()?,
            2 if event.kind == Some(b"BlockRemoved") => event.is_elsewhere = is_elsewhere(input.text()?),
            _ => input.skip(1)?,
        }
    }
    Ok(event)
}

fn map_event<'p>(input: &mut Input<'p>, entries: u64) -> Result<Event<'p>, EventFault> {
    let mut event = Event::default();
    for _ in 0..entries {
        match input.text()? {
            Some(b"type") => event.kind = input.text()?,
            Some(b"block_hashes") => event.blocks = input.count()?,
            Some(b"medium") => event.is_elsewhere = is_elsewhere(input.text()?),
            Some(_) | None => input.skip(1)?,
        }
    }
    Ok(event)
}

fn is_elsewhere(medium: Option<&[u8]>) -> bool {
    medium.is_some_and(|medium| !medium.eq_ignore_ascii_case(b"gpu"))
}

/// The beginning of a value.
enum Open {
    Array(u64),
    Map(u64),
    Other,
}

/// Values that hold no others: how many bytes follow the marker; and those that do: how many values.
enum Shape {
    Bytes(usize),
    Values(u64),
}

/// Unread payload. Every step takes at least a byte, so that no loop outlasts the payload.
#[derive(Debug)]
struct Input<'p> {
    rest: &'p [u8],
}

impl<'p> Input<'p> {
    /// Enters an array or a map; steps over anything else.
    fn open(&mut self) -> Result<Open, EventFault> {
        let marker = self.marker()?;
        let Shape::Values(values) = self.shape(marker)? else { return Ok(Open::Other) };
        let is_array = matches!(marker, Marker::FixArray(_) | Marker::Array16 | Marker::Array32);
        Ok(if is_array { Open::Array(values) } else { Open::Map(values / 2) })
    }

    /// Reads text; steps over anything else and gives `None`.
    fn text(&mut self) -> Result<Option<&'p [u8]>, EventFault> {
        let marker = self.marker()?;
        let is_text = matches!(marker, Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32);
        match self.shape(marker)? {
            Shape::Bytes(bytes) => self.take(bytes).map(|text| is_text.then_some(text)),
            Shape::Values(values) => self.skip(values).map(|()| None),
        }
    }

    /// Steps over a value; how many items it has if it is an array.
    fn count(&mut self) -> Result<u64, EventFault> {
        match self.open()? {
            Open::Array(items) => self.skip(items).map(|()| items),
            Open::Map(entries) => self.skip(entries.saturating_mul(2)).map(|()| 0),
            Open::Other => Ok(0),
        }
    }

    /// Steps over `values` values, with all they hold.
    fn skip(&mut self, values: u64) -> Result<(), EventFault> {
        let mut left = values;
        while left > 0 {
            left -= 1;
            let marker = self.marker()?;
            match self.shape(marker)? {
                Shape::Bytes(bytes) => drop(self.take(bytes)?),
                Shape::Values(values) => left = left.saturating_add(values),
            }
        }
        Ok(())
    }

    fn marker(&mut self) -> Result<Marker, EventFault> {
        read_marker(&mut self.rest).map_err(|_end| EventFault::NotMsgpack)
    }

    fn shape(&mut self, marker: Marker) -> Result<Shape, EventFault> {
        let bytes = |bytes: usize| Ok(Shape::Bytes(bytes));
        match marker {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => bytes(0),
            Marker::U8 | Marker::I8 => bytes(1),
            Marker::U16 | Marker::I16 | Marker::FixExt1 => bytes(2),
            Marker::FixExt2 => bytes(3),
            Marker::U32 | Marker::I32 | Marker::F32 => bytes(4),
            Marker::FixExt4 => bytes(5),
            Marker::U64 | Marker::I64 | Marker::F64 => bytes(8),
            Marker::FixExt8 => bytes(9),
            Marker::FixExt16 => bytes(17),
            Marker::FixStr(length) => bytes(usize::from(length)),
            Marker::Str8 | Marker::Bin8 => self.length(1).and_then(bytes),
            Marker::Str16 | Marker::Bin16 => self.length(2).and_then(bytes),
            Marker::Str32 | Marker::Bin32 => self.length(4).and_then(bytes),
            Marker::Ext8 => self.length(1).and_then(|length| bytes(length + 1)),
            Marker::Ext16 => self.length(2).and_then(|length| bytes(length + 1)),
            Marker::Ext32 => self.length(4).and_then(|length| bytes(length + 1)),
            Marker::FixArray(items) => Ok(Shape::Values(u64::from(items))),
            Marker::Array16 => self.length(2).map(|items| Shape::Values(items as u64)),
            Marker::Array32 => self.length(4).map(|items| Shape::Values(items as u64)),
            Marker::FixMap(entries) => Ok(Shape::Values(u64::from(entries) * 2)),
            Marker::Map16 => self.length(2).map(|entries| Shape::Values(entries as u64 * 2)),
            Marker::Map32 => self.length(4).map(|entries| Shape::Values(entries as u64 * 2)),
            Marker::Reserved => Err(EventFault::NotMsgpack),
        }
    }

    /// A length of `width` bytes, big-endian.
    fn length(&mut self, width: usize) -> Result<usize, EventFault> {
        Ok(self.take(width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    fn take(&mut self, bytes: usize) -> Result<&'p [u8], EventFault> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(EventFault::NotMsgpack)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// How a batch follows the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As the next, or as the first that was heard.
    Next,
    /// After this many that were not heard.
    After(u64),
    /// Heard before, or numbered anew: the publisher has restarted.
    Anew,
}

/// Follows the sequence numbers of one publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    next: Option<u64>,
}

impl Sequence {
    /// Takes the next number.
    pub const fn hear(&mut self, number: u64) -> Order {
        let expected = self.next;
        self.next = Some(number.wrapping_add(1));
        match expected {
            Some(expected) if number > expected => Order::After(number - expected),
            Some(expected) if number < expected => Order::Anew,
            Some(_) | None => Order::Next,
        }
    }
}

/// Reads the frame that holds a sequence number.
#[must_use]
pub fn read_sequence(frame: &[u8]) -> Option<u64> {
    frame.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[1.5, [["BlockRemoved", [1, 2], "GPU"], ["BlockRemoved", [3], "CPU"], ["AllBlocksCleared"]], 0]`, by hand.
    const ARRAYS: &[u8] = b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x93\
        \x93\xacBlockRemoved\x92\x01\x02\xa3GPU\x93\xacBlockRemoved\x91\x03\xa3CPU\x91\xb0AllBlocksCleared\x00";

    fn recorded() -> Vec<(String, Vec<u8>)> {
        let text = include_str!("../../tests/pages/vllm-kv-events.jsonl");
        let bytes = |hex: &str| -> Vec<u8> {
            hex.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        };
        let line = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            (value["phase"].as_str().unwrap().to_owned(), bytes(value["payload"].as_str().unwrap()))
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn what_vllm_sent_is_read() {
        let batch = |wanted: &str| {
            let (_, payload) = recorded().into_iter().rfind(|(phase, _)| phase == wanted).unwrap();
            read_batch(&payload).unwrap()
        };
        assert_eq!(batch("first"), Batch { stored: 6, ..Batch::default() });
        assert_eq!(batch("evict").evicted, 27);
        assert_eq!(batch("after_reset"), Batch { stored: 2, cleared: 1, ..Batch::default() });
    }

    #[test]
    fn events_as_arrays_are_read() {
        let expected = Batch { evicted: 2, cleared: 1, ..Batch::default() };
        assert_eq!(read_batch(ARRAYS), Ok(expected));
        // `{"ts": 1, "events": [{"type": "Other"}]}`
        let map = b"\x82\xa2ts\x01\xa6events\x91\x81\xa4type\xa5Other";
        assert_eq!(read_batch(map), Ok(Batch { unknown: 1, ..Batch::default() }));
    }

    #[test]
    fn every_cut_is_an_error() {
        let payloads = recorded().into_iter().map(|(_, payload)| payload).chain([ARRAYS.to_vec()]);
        for payload in payloads {
            for length in 0..payload.len() {
                assert!(read_batch(&payload[..length]).is_err(), "cut at {length}");
            }
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        assert_eq!(read_batch(b"\x01"), Err(EventFault::NotABatch));
        assert_eq!(read_batch(b"\x91\x01"), Err(EventFault::NotABatch));
        assert_eq!(read_batch(b"\x92\x01\x01"), Err(EventFault::NotABatch));
        assert_eq!(read_batch(b"\x92\x01\x91\x01"), Err(EventFault::NotABatch));
        assert_eq!(read_batch(b"\x81\xa2ts\x01"), Err(EventFault::NotABatch));
        assert_eq!(read_batch(b"\xc1"), Err(EventFault::NotMsgpack));
        // An array that says it has 2^32 - 1 items.
        assert_eq!(read_batch(b"\x92\x01\xdd\xff\xff\xff\xff"), Err(EventFault::NotMsgpack));
        let long = vec![0; PAYLOAD_BYTES_MAX + 1];
        assert_eq!(read_batch(&long), Err(EventFault::TooLong { bytes: long.len() }));
    }

    #[test]
    fn lost_and_restarted_sequences_are_noticed() {
        let mut sequence = Sequence::default();
        let heard = [7, 8, 11, 12, 0, 1].map(|number| sequence.hear(number));
        assert_eq!(heard, [Order::Next, Order::Next, Order::After(2), Order::Next, Order::Anew, Order::Next]);
        assert_eq!(read_sequence(&[0, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(read_sequence(b"short"), None);
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = read_batch(bytes);
        });
    }
}
