//! A body as a list of tokens: the text and the offsets of its structural characters, found by SIMD. Checks the
//! grammar once, notes where each container ends, and from then on any value is skipped in one step.

use std::ops::Range;

use crate::parse::ParseLimits;
use crate::parse::fields::known_name;
use crate::parse::text::{SHORT, Staging, has_no_backslash, says};
use crate::reject::BodyFault;

/// A checked document. Values are named by the index of their first token; token 0 is the outermost object, so 0
/// never names a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'a> {
    /// The body with its padding.
    padded: &'a [u8],
    text: &'a [u8],
    marks: &'a [u32],
    ends: &'a [u32],
}

/// Kinds of JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    Number,
    Object,
    Array,
    True,
    False,
    Null,
}

impl<'a> Document<'a> {
    /// Checks `text` (and holds on to the padding behind it), whose tokens stand at `marks`, and calls `member` for each
    /// member of the outermost object with its key and its value's token. `ends` is scratch memory.
    ///
    /// What stage 1 guarantees: strings are closed and hold no control characters, the text is UTF-8, and every
    /// character outside strings that follows white space, punctuation or a string starts a token. So between a
    /// string's closing quote and the next token there is only white space, and strings need no second look here.
    pub(super) fn check(
        (padded, text): (&'a [u8], &'a [u8]),
        marks: &'a [u32],
        ends: &'a mut Vec<u32>,
        limits: ParseLimits,
        mut member: impl FnMut(&'a [u8], usize) -> Result<(), BodyFault>,
    ) -> Result<Self, BodyFault> {
        if ends.len() < marks.len() {
            ends.resize(marks.len(), 0);
        }
        let tokens = Document { padded, text, marks, ends: &[] };
        if tokens.byte(0) != b'{' {
            return Err(BodyFault::NotAnObject);
        }
        let mut nest = Nest { innermost: 0, depth: 0, limit: limits.depth };
        let mut in_object = true;
        let (mut values, mut at) = (0, 0);
        // Each turn reads a value; the outermost one is not counted.
        loop {
            if values > limits.elements {
                return Err(BodyFault::Elements { limit: limits.elements });
            }
            values += 1;
            let byte = tokens.byte(at);
            let is_container = matches!(byte, b'{' | b'[');
            if is_container {
                nest.open(at, ends)?;
                in_object = byte == b'{';
            } else if byte != b'"' {
                tokens.check_atom(at)?;
            }
            at += 1;
            // The brackets in ASCII: each closing one is two behind its opening one.
            let is_filled = is_container && tokens.byte(at) != byte + 2;
            if !is_filled && !tokens.check_next(&mut at, &mut nest, &mut in_object, ends)? {
                break;
            }
            if in_object {
                if tokens.byte(at) != b'"' || tokens.byte(at + 1) != b':' {
                    return Err(tokens.syntax(at));
                }
                if nest.depth == 1 {
                    member(tokens.key(at), at + 2)?;
                }
                at += 2;
            }
        }
        if at < marks.len() { Err(tokens.syntax(at)) } else { Ok(Document { padded, text, marks, ends }) }
    }

    /// Checks what follows a value: closing brackets, then a comma, which `at` is moved behind. False at the end of the
    /// outermost object.
    #[inline]
    fn check_next(
        self,
        at: &mut usize,
        nest: &mut Nest,
        in_object: &mut bool,
        ends: &mut [u32],
    ) -> Result<bool, BodyFault> {
        loop {
            let byte = self.byte(*at);
            if byte != b',' && byte != if *in_object { b'}' } else { b']' } {
                return Err(self.syntax(*at));
            }
            *at += 1;
            if byte == b',' {
                return Ok(true);
            }
            nest.close(*at, ends);
            if nest.depth == 0 {
                return Ok(false);
            }
            *in_object = self.byte(nest.innermost as usize) == b'{';
        }
    }

    /// The whole body.
    pub(super) const fn text(self) -> &'a [u8] {
        self.text
    }

    /// What kind of value starts at token `at`.
    pub(super) fn kind(self, at: usize) -> Kind {
        match self.byte(at) {
            b'"' => Kind::String,
            b'{' => Kind::Object,
            b'[' => Kind::Array,
            b't' => Kind::True,
            b'f' => Kind::False,
            b'n' => Kind::Null,
            _ => Kind::Number,
        }
    }

    /// First character of token `at`; zero past the end.
    pub(super) fn byte(self, at: usize) -> u8 {
        self.text.get(self.start(at)).copied().unwrap_or(0)
    }

    /// The token after the value at `at`.
    pub(super) fn after(self, at: usize) -> usize {
        match self.byte(at) {
            b'{' | b'[' => self.ends.get(at).map_or(at + 1, |end| *end as usize),
            _ => at + 1,
        }
    }

    /// The inside of the string at token `at`, as sent; nothing when the token is no string.
    #[inline]
    pub(super) fn string(self, at: usize) -> &'a [u8] {
        self.text.get(self.string_range(at)).unwrap_or_default()
    }

    /// Where [`Self::string`] stands in the body.
    #[inline]
    pub(super) fn string_range(self, at: usize) -> Range<usize> {
        let open = self.start(at) + 1;
        // Between the closing quote and the next token there is only white space.
        let mut close = self.start(at + 1).saturating_sub(1);
        while close > open && self.text.get(close) != Some(&b'"') {
            close -= 1;
        }
        open..close
    }

    /// Appends the string at token `at` to `out`, as sent.
    pub(super) fn copy_string(self, at: usize, out: &mut Staging) {
        out.range(self.padded, self.string_range(at));
    }

    /// Appends `tokens` and all between them to `out`; no gap may be inside.
    pub(super) fn copy_tokens(self, tokens: Range<usize>, out: &mut Staging) {
        if let Some(last) = tokens.end.checked_sub(1).filter(|last| *last >= tokens.start) {
            out.range(self.padded, self.start(tokens.start)..self.start(last) + self.token(last).len());
        }
    }

    /// True when white space stands before token `at`.
    #[inline]
    pub(super) fn has_gap_before(self, at: usize) -> bool {
        let before = self.start(at).checked_sub(1).and_then(|before| self.text.get(before));
        before.is_some_and(|byte| *byte <= b' ')
    }

    /// The character behind the first of token `at`; zero past the end.
    #[inline]
    pub(super) fn second_byte(self, at: usize) -> u8 {
        self.text.get(self.start(at) + 1).copied().unwrap_or(0)
    }

    /// The text of the string or atom at token `at`, quotes included: all up to the next token but white space.
    pub(super) fn token(self, at: usize) -> &'a [u8] {
        let mut token = self.text.get(self.start(at)..self.start(at + 1)).unwrap_or_default();
        while let [rest @ .., b' ' | b'\n' | b'\r' | b'\t'] = token {
            token = rest;
        }
        token
    }

    /// The name that the string at token `at` says: a key or a `type`. One that says a known name behind escapes is
    /// that name: other parsers will read it so.
    #[inline]
    pub(super) fn key(self, at: usize) -> &'a [u8] {
        let range = self.string_range(at);
        let block = self.padded.get(range.start..).and_then(<[u8]>::first_chunk);
        let is_plain = range.len() <= SHORT && block.is_some_and(has_no_backslash);
        let raw = self.text.get(range).unwrap_or_default();
        if is_plain || !raw.contains(&b'\\') {
            return raw;
        }
        known_name(|name| says(raw, name)).unwrap_or(raw)
    }

    /// The members of the object at token `at`: key and value.
    pub(super) fn members(self, at: usize) -> impl Iterator<Item = (&'a [u8], usize)> {
        let is_object = self.kind(at) == Kind::Object && self.byte(at + 1) == b'"';
        let mut next = is_object.then_some(at + 1);
        std::iter::from_fn(move || {
            let this = next?;
            let end = self.after(this + 2);
            next = (self.byte(end) == b',').then_some(end + 1);
            Some((self.key(this), this + 2))
        })
    }

    /// The elements of the array at token `at`.
    pub(super) fn elements(self, at: usize) -> impl Iterator<Item = usize> {
        let is_filled = self.kind(at) == Kind::Array && self.byte(at + 1) != b']';
        let mut next = is_filled.then_some(at + 1);
        std::iter::from_fn(move || {
            let this = next?;
            let end = self.after(this);
            next = (self.byte(end) == b',').then_some(end + 1);
            Some(this)
        })
    }

    #[inline]
    fn start(self, at: usize) -> usize {
        self.marks.get(at).map_or(self.text.len(), |mark| *mark as usize)
    }

    fn syntax(self, at: usize) -> BodyFault {
        BodyFault::Syntax { offset: u32::try_from(self.start(at)).ok() }
    }

    /// Checks the number, `true`, `false` or `null` at token `at`.
    fn check_atom(self, at: usize) -> Result<(), BodyFault> {
        let rest = self.text.get(self.start(at)..).unwrap_or_default();
        let length = match rest {
            [b't', b'r', b'u', b'e', ..] | [b'n', b'u', b'l', b'l', ..] => 4,
            [b'f', b'a', b'l', b's', b'e', ..] => 5,
            _ => number_length(rest).ok_or_else(|| self.syntax(at))?,
        };
        match rest.get(length) {
            None | Some(b' ' | b'\n' | b'\r' | b'\t' | b',' | b']' | b'}') => Ok(()),
            Some(_) => Err(self.syntax(at)),
        }
    }
}

/// Length of the JSON number at the front of `text`, of any magnitude.
fn number_length(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let run = text.get(from..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (run > 0).then_some(from + run)
    };
    let whole = usize::from(text.first() == Some(&b'-'));
    let mut end = digits(whole)?;
    if text.get(whole) == Some(&b'0') && end > whole + 1 {
        return None;
    }
    if text.get(end) == Some(&b'.') {
        end = digits(end + 1)?;
    }
    if matches!(text.get(end), Some(b'e' | b'E')) {
        let signed = matches!(text.get(end + 1), Some(b'+' | b'-'));
        end = digits(end + 1 + usize::from(signed))?;
    }
    Some(end)
}

/// The containers that are open: a list threaded through `ends`, where an open container keeps its parent's token
/// until its own end is known.
#[derive(Debug)]
struct Nest {
    /// Token of the innermost one.
    innermost: u32,
    depth: u16,
    limit: u16,
}

impl Nest {
    /// Opens a container at token `at`.
    fn open(&mut self, at: usize, ends: &mut [u32]) -> Result<(), BodyFault> {
        if self.depth >= self.limit {
            return Err(BodyFault::Depth { limit: self.limit });
        }
        if let (Some(end), Ok(at)) = (ends.get_mut(at), u32::try_from(at)) {
            *end = self.innermost;
            self.innermost = at;
        }
        self.depth += 1;
        Ok(())
    }

    /// Closes the innermost container, whose last token is before `after`.
    fn close(&mut self, after: usize, ends: &mut [u32]) {
        if let (Some(end), Ok(after)) = (ends.get_mut(self.innermost as usize), u32::try_from(after)) {
            self.innermost = std::mem::replace(end, after);
        }
        self.depth = self.depth.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_grammar() {
        for good in ["0", "-0", "10", "1.5", "1e400", "-1E-7", "123456789012345678901234567890", "0.0e+0"] {
            assert_eq!(number_length(good.as_bytes()), Some(good.len()), "{good}");
        }
        for bad in ["", "-", "01", "1.", ".5", "1e", "1e+", "+1", "NaN", "Infinity", "-Infinity", "-01"] {
            assert_eq!(number_length(bad.as_bytes()), None, "{bad}");
        }
    }
}
