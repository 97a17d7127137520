//! Stage 1: where the tokens of a body are, found by simd-json's SIMD scan over a pooled copy. Only its first stage is
//! used. Its second unescapes every string twice over and keeps 24 bytes a token; routing reads hardly any string
//! unescaped, so [`Document`](super::document::Document) walks the tokens itself.

use simd_json::{Buffers, ErrorType, INPUT_PADDING, Tape, fill_tape_padded};

use crate::parse::ParseLimits;
use crate::parse::text::copy;
use crate::reject::{BodyFault, Reject};

/// Reusable memory of stage 1.
pub(super) struct Scanner {
    /// The copy with its padding; kept at its greatest length, so that growth is zeroed once.
    text: Vec<u8>,
    /// Length of the body in it.
    len: usize,
    buffers: Buffers,
    /// Never written: stage 2 stops at the first token. Its room is address space, not memory.
    tape: Tape<'static>,
}

impl Scanner {
    pub(super) fn new() -> Self {
        // A nesting limit of zero stops stage 2 at the outermost bracket: the text stays as it is.
        Self { text: Vec::new(), len: 0, buffers: Buffers::with_max_depth(0, 0), tape: Tape(Vec::new()) }
    }

    /// Finds the tokens of `body`.
    pub(super) fn scan(&mut self, body: &[u8], limits: ParseLimits) -> Result<(), Reject> {
        let limit_bytes = u32::MAX as usize - INPUT_PADDING;
        if body.len() > limit_bytes {
            return Err(Reject::BodyTooLarge { limit_bytes: limit_bytes as u64 });
        }
        if body.trim_ascii().is_empty() {
            return Err(BodyFault::Empty.into());
        }
        bound_tokens(body, limits)?;
        self.copy(body);
        let room = self.text.get_mut(..body.len() + INPUT_PADDING).unwrap_or_default();
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let outcome = fill_tape_padded(room, body.len(), &mut self.buffers, &mut tape);
        self.tape = tape.reset();
        match outcome {
            Ok(()) => Err(BodyFault::NotAnObject.into()),
            // Stage 1 was content, and stage 2 stopped at the first bracket as asked.
            Err(error) if *error.error() == ErrorType::DepthLimitExceeded => Ok(()),
            Err(error) if *error.error() == ErrorType::InvalidUtf8 => Err(BodyFault::Utf8.into()),
            Err(_) => Err(BodyFault::Syntax { offset: None }.into()),
        }
    }

    /// The copy of the body, with padding and without.
    pub(super) fn text(&self) -> (&[u8], &[u8]) {
        (&self.text, self.text.get(..self.len).unwrap_or_default())
    }

    /// Offset of each token.
    pub(super) fn marks(&self) -> &[u32] {
        self.buffers.structural_indexes()
    }

    /// Bytes of memory held.
    pub(super) fn capacity(&self) -> usize {
        self.text.capacity() + size_of_val(self.marks())
    }

    fn copy(&mut self, body: &[u8]) {
        self.len = body.len();
        if self.text.len() < body.len() + INPUT_PADDING {
            self.text.resize(body.len() + INPUT_PADDING, 0);
        }
        copy(body, &mut self.text);
    }
}

/// Refuses a body with far more values than the limit before memory is spent on its tokens. Only a body longer than
/// the limit can be one, so small bodies are not looked at.
///
/// Each element adds one comma or is the first behind a bracket; an empty container adds a bracket and is itself an
/// element. So outside strings, `commas + opening brackets <= 2 * values + 1`.
fn bound_tokens(body: &[u8], limits: ParseLimits) -> Result<(), BodyFault> {
    let elements = limits.elements as usize;
    if body.len() <= elements {
        return Ok(());
    }
    let mut count = 0;
    let mut at = 0;
    while let Some(byte) = body.get(at) {
        at += 1;
        match byte {
            b',' | b'[' | b'{' if count > 2 * elements => {
                return Err(BodyFault::Elements { limit: limits.elements });
            }
            b',' | b'[' | b'{' => count += 1,
            b'"' => at = string_end(body, at),
            _ => {}
        }
    }
    Ok(())
}

/// What follows the string whose inside starts at `at`. Short strings end before a search would have started.
fn string_end(body: &[u8], mut at: usize) -> usize {
    const SHORT: usize = 16;
    let short_end = at + SHORT;
    while at < short_end {
        match body.get(at) {
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
            None => return at,
        }
    }
    while let Some(step) = body.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += step;
        if body.get(at) == Some(&b'"') {
            return at + 1;
        }
        at += 2;
    }
    body.len()
}
