//! Whole events only: a stream that breaks off in the middle of a server-sent event must not leave half of one before the
//! error event that follows, or the client's parser chokes on the half and never sees the error.
//!
//! Engines write whole events, so nearly every chunk passes as it is. Only the start of an event whose end has not come
//! waits, and nobody can use it before that.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// The start of an event longer than this passes before its end.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// The longest blank line, bytes.
const BLANK_LINE_MAX: usize = 3;

/// Holds back the start of an event until its end.
#[derive(Debug, Default)]
pub(super) struct EventGate {
    held: BytesMut,
    /// Part of a long event has passed already.
    is_open: bool,
}

impl EventGate {
    /// What may pass now that `chunk` has come; empty when all of it waits.
    pub(super) fn pass(&mut self, mut chunk: Bytes) -> Bytes {
        if !self.held.is_empty() {
            return self.pass_with_held(&chunk);
        }
        match end_of_last_event(&chunk) {
            Some(end) => {
                let rest = chunk.split_off(end);
                self.held.extend_from_slice(&rest);
                self.is_open = false;
            }
            None if self.is_open || chunk.len() > HELD_BYTES_MAX => self.is_open = true,
            None => {
                self.held.extend_from_slice(&chunk);
                chunk.clear();
            }
        }
        chunk
    }

    /// What is held has no end in it: only what is new, and a blank line that began before it, is looked at.
    fn pass_with_held(&mut self, chunk: &[u8]) -> Bytes {
        let from = self.held.len().saturating_sub(BLANK_LINE_MAX - 1);
        self.held.extend_from_slice(chunk);
        match self.held.get(from..).and_then(end_of_last_event) {
            Some(end) => {
                self.is_open = false;
                self.held.split_to(from + end).freeze()
            }
            None if self.held.len() > HELD_BYTES_MAX => {
                self.is_open = true;
                self.held.split().freeze()
            }
            None => Bytes::new(),
        }
    }

    /// The stream ended as it should: what is held passes too.
    pub(super) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// The stream broke off: what must pass so that the next event stands alone.
    pub(super) fn closing(&self) -> &'static [u8] {
        if self.is_open { b"\n\n" } else { b"" }
    }
}

/// Where the last event that is complete ends: behind its blank line.
fn end_of_last_event(bytes: &[u8]) -> Option<usize> {
    if bytes.ends_with(b"\n\n") {
        return Some(bytes.len());
    }
    let blank_lines: [&[u8]; 3] = [b"\n\n", b"\n\r\n", b"\r\r"];
    blank_lines.iter().filter_map(|blank| Some(memmem::rfind(bytes, blank)? + blank.len())).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(gate: &mut EventGate, chunk: &'static [u8]) -> Bytes {
        gate.pass(Bytes::from_static(chunk))
    }

    #[test]
    fn whole_events_pass_untouched_and_halves_wait() {
        let mut gate = EventGate::default();
        let whole = Bytes::from_static(b"data: 1\n\n");
        assert_eq!(gate.pass(whole.clone()).as_ptr(), whole.as_ptr(), "no copy");
        assert_eq!(passed(&mut gate, b"data: 2\n\ndata: "), "data: 2\n\n");
        assert_eq!(passed(&mut gate, b"3\n"), "");
        assert_eq!(passed(&mut gate, b"\ndata: 4\r\n\r\nda"), "data: 3\n\ndata: 4\r\n\r\n");
        assert_eq!(gate.closing(), b"");
        assert_eq!(gate.rest(), "da");
    }

    #[test]
    fn long_events_pass_in_parts() {
        let mut gate = EventGate::default();
        let part = Bytes::from(vec![b'x'; HELD_BYTES_MAX + 1]);
        assert_eq!(gate.pass(part.clone()).len(), part.len());
        assert_eq!(passed(&mut gate, b"more"), "more");
        assert_eq!(gate.closing(), b"\n\n");
        assert_eq!(passed(&mut gate, b"end\n\nnext"), "end\n\n");
        assert_eq!(gate.closing(), b"");
    }

    #[test]
    fn what_is_held_is_not_copied_again_for_each_chunk() {
        let mut gate = EventGate { held: BytesMut::with_capacity(1024), is_open: false };
        assert_eq!(passed(&mut gate, b"data: "), "");
        let place = gate.held.as_ptr();
        for _ in 0..500 {
            assert_eq!(passed(&mut gate, b"x"), "");
        }
        assert_eq!(gate.held.as_ptr(), place);
        assert_eq!(passed(&mut gate, b"\n"), "");
        assert_eq!(passed(&mut gate, b"\r"), "");
        assert_eq!(passed(&mut gate, b"\n: next").len(), 6 + 500 + 3, "the blank line began in what was held");
        assert_eq!(gate.rest(), ": next");
    }

    #[test]
    fn nothing_is_lost_however_the_stream_is_cut() {
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(text, cuts)| {
            let text: Vec<u8> = text.iter().map(|byte| [b'\n', b'\r', b'a', b':'][usize::from(byte % 4)]).collect();
            let (mut gate, mut out, mut left) = (EventGate::default(), Vec::new(), text.as_slice());
            for cut in cuts.iter().chain(std::iter::repeat(&255)) {
                let (chunk, rest) = left.split_at(usize::from(*cut).min(left.len()));
                out.extend_from_slice(&gate.pass(Bytes::copy_from_slice(chunk)));
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            out.extend_from_slice(&gate.rest());
            assert_eq!(out, text);
        });
    }
}
