//! JSON string text. Message text enters the prompt as sent, escapes and all: the same text sent again has the same
//! bytes, and nothing is decoded only to be hashed. Escapes are still checked, all of a body's in one pass; only short
//! routing fields are unescaped. Stage 1 has already held that strings are closed, valid UTF-8 and free of raw control
//! characters.

use std::ops::Range;

use crate::reject::BodyFault;

/// Most bytes copied by one wide move of known size. Sources keep this much readable behind what is copied, and
/// destinations this much room.
const BLOCK: usize = 32;

/// Bytes copied at a time. glibc's `memcpy` turns to `rep movsb` for larger ones, which on some processors is thirty
/// times slower at unlucky alignments.
const COPY_BYTES: usize = 1024;

/// A growing buffer that keeps its length between bodies, so that its bytes are zeroed once and not for every request.
#[derive(Debug, Default)]
pub(super) struct Staging {
    bytes: Vec<u8>,
    used: usize,
}

impl Staging {
    /// Forgets the content, keeps the memory.
    pub(super) const fn clear(&mut self) {
        self.used = 0;
    }

    /// What was written.
    pub(super) fn written(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// Bytes written so far.
    pub(super) const fn len(&self) -> usize {
        self.used
    }

    /// Bytes of memory held.
    pub(super) const fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Makes room for `more` bytes and a block behind them.
    #[inline]
    fn room(&mut self, more: usize) {
        let wanted = self.used + more + BLOCK;
        if self.bytes.len() < wanted {
            self.grow(wanted);
        }
    }

    #[cold]
    fn grow(&mut self, wanted: usize) {
        self.bytes.resize(wanted.max(self.bytes.len() * 2), 0);
    }

    /// Appends one byte.
    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        self.array([byte]);
    }

    /// Appends two bytes.
    #[inline]
    pub(super) fn pair(&mut self, first: u8, second: u8) {
        self.array([first, second]);
    }

    /// Appends a few bytes whose number is known when compiling.
    #[inline]
    pub(super) fn array<const N: usize>(&mut self, bytes: [u8; N]) {
        self.room(N);
        if let Some(slot) = self.bytes.get_mut(self.used..).and_then(<[u8]>::first_chunk_mut::<N>) {
            *slot = bytes;
            self.used += N;
        }
    }

    /// Takes back the last byte.
    pub(super) const fn pop(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    /// Appends short bytes as they are.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.range(bytes, 0..bytes.len());
    }

    /// Appends `range` of `text` as it is. With a block readable behind the range, a short one is a single wide move.
    #[inline]
    pub(super) fn range(&mut self, text: &[u8], range: Range<usize>) {
        let length = range.len();
        self.room(length);
        let Some(slot) = self.bytes.get_mut(self.used..) else { return };
        if length <= BLOCK
            && let Some(block) = text.get(range.start..).and_then(<[u8]>::first_chunk::<BLOCK>)
            && let Some(slot) = slot.first_chunk_mut::<BLOCK>()
        {
            *slot = *block;
            self.used += length;
        } else if let (Some(from), Some(to)) = (text.get(range), slot.get_mut(..length)) {
            copy(from, to);
            self.used += length;
        }
    }

    /// Appends the inside of a JSON string, unescaped.
    pub(super) fn unescaped(&mut self, raw: &[u8]) -> Result<(), BodyFault> {
        let mut rest = 0;
        while let Some(step) = raw.get(rest..).and_then(|rest| memchr::memchr(b'\\', rest)) {
            let escape = read_escape(raw, rest + step).map_err(EscapeFault::into_body)?;
            self.raw(raw.get(rest..rest + step).unwrap_or_default());
            self.raw(escape.scalar.encode_utf8(&mut [0; 4]).as_bytes());
            rest += step + escape.length;
        }
        self.raw(raw.get(rest..).unwrap_or_default());
        Ok(())
    }
}

/// Copies `from` to the front of `to`.
pub(super) fn copy(from: &[u8], to: &mut [u8]) {
    for (to, from) in to.chunks_mut(COPY_BYTES).zip(from.chunks(COPY_BYTES)) {
        if let Some(to) = to.get_mut(..from.len()) {
            to.copy_from_slice(from);
        }
    }
}

/// An escape that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EscapeFault {
    /// Not an escape of JSON; its offset.
    Unknown(usize),
    /// Half a surrogate pair.
    LoneSurrogate,
}

impl EscapeFault {
    fn into_body(self) -> BodyFault {
        match self {
            Self::Unknown(offset) => BodyFault::Syntax { offset: u32::try_from(offset).ok() },
            Self::LoneSurrogate => BodyFault::Utf8,
        }
    }
}

/// What a simple escape stands for; 0 for what is none.
const SIMPLE: [u8; 256] = {
    let mut table = [0; 256];
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table[b'/' as usize] = b'/';
    table[b'b' as usize] = 8;
    table[b'f' as usize] = 12;
    table[b'n' as usize] = b'\n';
    table[b'r' as usize] = b'\r';
    table[b't' as usize] = b'\t';
    table
};

#[derive(Clone, Copy, Debug)]
struct Escape {
    scalar: char,
    length: usize,
}

/// Reads the escape whose backslash is at `at`.
fn read_escape(raw: &[u8], at: usize) -> Result<Escape, EscapeFault> {
    match raw.get(at + 1) {
        Some(b'u') => read_unicode(raw, at),
        Some(kind) if SIMPLE[usize::from(*kind)] != 0 => {
            Ok(Escape { scalar: char::from(SIMPLE[usize::from(*kind)]), length: 2 })
        }
        _ => Err(EscapeFault::Unknown(at)),
    }
}

fn read_unicode(raw: &[u8], at: usize) -> Result<Escape, EscapeFault> {
    let unit = read_hex(raw, at)?;
    if let Some(scalar) = char::from_u32(unit) {
        return Ok(Escape { scalar, length: 6 });
    }
    if unit >= 0xDC00 || raw.get(at + 6..at + 8) != Some(b"\\u") {
        return Err(EscapeFault::LoneSurrogate);
    }
    let low = read_hex(raw, at + 6)?;
    if !(0xDC00..0xE000).contains(&low) {
        return Err(EscapeFault::LoneSurrogate);
    }
    let scalar = char::from_u32(0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
    scalar.map(|scalar| Escape { scalar, length: 12 }).ok_or(EscapeFault::LoneSurrogate)
}

/// The four hex digits of the `\uXXXX` at `at`.
fn read_hex(raw: &[u8], at: usize) -> Result<u32, EscapeFault> {
    let digits = raw.get(at + 2..at + 6).ok_or(EscapeFault::Unknown(at))?;
    digits.iter().try_fold(0, |unit, &digit| {
        let value = char::from(digit).to_digit(16).ok_or(EscapeFault::Unknown(at))?;
        Ok(unit << 4 | value)
    })
}

/// Checks every escape of a body.
///
/// Where each backslash of a block stands before one of [`USUAL`], its escapes are good whichever of the backslashes
/// begin them: a test that compilers turn into SIMD. So is a closer look at other blocks; what fails both is read escape
/// by escape.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
pub(super) fn check_escapes(text: &[u8]) -> Result<(), BodyFault> {
    let mut at = 0;
    // All before this is checked, and no escape reaches across it.
    let mut settled = 0;
    while at < text.len() {
        let is_usual = match text.get(at..).and_then(<[u8]>::first_chunk) {
            Some(block) => are_usual(block),
            None => {
                let (mut last, rest) = ([0; LOOKED_AT], text.get(at..).unwrap_or_default());
                last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                are_usual(&last)
            }
        };
        let end = at + LOOKED_AT - 1;
        let window = at.checked_sub(2).and_then(|start| text.get(start..));
        if !is_usual && !window.and_then(<[u8]>::first_chunk).is_some_and(are_usual_or_paired) {
            let run = text.get(settled..at).unwrap_or_default().iter().rev().take_while(|byte| **byte == b'\\').count();
            settled = check_each(text, at - run, end.min(text.len()))?;
        }
        at = end.max(settled);
    }
    Ok(())
}

/// Bytes of a block, and the one behind it.
const LOOKED_AT: usize = 65;

/// The escapes that texts are full of.
const USUAL: [u8; 4] = *b"n\"\\t";

/// True when each backslash stands before one of [`USUAL`].
#[inline(always)]
fn are_usual(block: &[u8; LOOKED_AT]) -> bool {
    let (Some(here), Some(next)) = (block.first_chunk::<64>(), block.last_chunk::<64>()) else { return false };
    let unusual = here.iter().zip(next).fold(0, |unusual, (here, next)| {
        let is_usual = USUAL.iter().fold(0, |any, usual| any | u8::from(next == usual));
        unusual | (u8::from(*here == b'\\') & !is_usual)
    });
    unusual == 0
}

/// As [`are_usual`], for what follows the first two bytes, but a backslash that is the second of just two may stand
/// before anything: it is escaped. Regular expressions and paths are full of them.
#[inline(always)]
fn are_usual_or_paired(window: &[u8; LOOKED_AT + 2]) -> bool {
    let pairs = window.first_chunk::<64>().zip(window.get(1..).and_then(<[u8]>::first_chunk::<64>));
    let (Some((before, first)), Some(block)) = (pairs, window.last_chunk::<LOOKED_AT>()) else { return false };
    let (Some(here), Some(next)) = (block.first_chunk::<64>(), block.last_chunk::<64>()) else { return false };
    let unusual =
        before.iter().zip(first).zip(here.iter().zip(next)).fold(0, |unusual, ((before, first), (here, next))| {
            let is_usual = USUAL.iter().fold(0, |any, usual| any | u8::from(next == usual));
            let is_second = u8::from(*first == b'\\') & u8::from(*before != b'\\');
            unusual | (u8::from(*here == b'\\') & !is_usual & !is_second)
        });
    unusual == 0
}

/// Bytes in which a backslash is looked for at once.
pub(super) const SHORT: usize = 16;

/// True when the block has no backslash; written so that compilers turn it into SIMD.
#[inline]
pub(super) fn has_no_backslash(block: &[u8; SHORT]) -> bool {
    !block.iter().fold(false, |any, byte| any | (*byte == b'\\'))
}

/// Checks the escapes that begin in `from..end`. Returns a place at `end` or shortly behind up to which all are good.
#[inline(never)]
fn check_each(text: &[u8], mut from: usize, end: usize) -> Result<usize, BodyFault> {
    while from < end {
        from += match text.get(from..) {
            // A search for the next backslash costs more to start than the rest of a block to look at.
            Some([b'\\', kind, ..]) if SIMPLE[usize::from(*kind)] != 0 => 2,
            Some([b'\\', ..]) => read_escape(text, from).map_err(EscapeFault::into_body)?.length,
            Some(rest) if rest.first_chunk().is_some_and(has_no_backslash) => SHORT,
            _ => 1,
        };
    }
    Ok(from)
}

/// True when the string `raw` says `name` once unescaped. For keys that hide behind escapes.
pub(super) fn says(raw: &[u8], name: &[u8]) -> bool {
    let (mut at, mut rest) = (0, name);
    while let Some(byte) = raw.get(at) {
        let (mut encoded, mut length) = ([*byte, 0, 0, 0], 1);
        if *byte == b'\\' {
            let Ok(escape) = read_escape(raw, at) else { return false };
            length = escape.scalar.encode_utf8(&mut encoded).len();
            at += escape.length;
        } else {
            at += 1;
        }
        match encoded.get(..length).and_then(|said| rest.strip_prefix(said)) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(raw: &str) -> Result<String, BodyFault> {
        let mut out = Staging::default();
        let unescaped = out.unescaped(raw.as_bytes());
        assert_eq!(check_escapes(raw.as_bytes()), unescaped, "{raw}");
        unescaped.map(|()| String::from_utf8(out.written().to_vec()).unwrap())
    }

    #[test]
    fn unescapes_as_serde_json_does() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let quoted = serde_json::to_string(text).unwrap();
            let raw = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap();
            assert_eq!(plain(raw).unwrap(), *text);
        });
    }

    #[test]
    fn arbitrary_escapes_agree_with_serde_json() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|seed| {
            let alphabet = [
                "\\",
                "u",
                "d83d",
                "\\ud83d",
                "\\ude00",
                "00e9",
                "n",
                "t",
                "/",
                "b",
                "é",
                "x",
                " ",
                "abcdefghijklmnop",
            ];
            let raw: String = seed.iter().map(|byte| alphabet[usize::from(*byte) % alphabet.len()]).collect();
            let theirs = serde_json::from_str::<String>(&format!("\"{raw}\""));
            if raw.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 {
                assert_eq!(plain(&raw).ok(), theirs.ok(), "{raw}");
            }
        });
    }

    #[test]
    fn long_texts_agree_with_serde_json() {
        bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(shift, seed)| {
            let parts = [
                "\\n",
                "\\\\",
                "\\\\s",
                "\\\\\\\"",
                "\\t",
                "\\u00e9",
                "plain words of some length",
                "n",
                "\\ud83d\\ude00",
                "\\/",
            ];
            let mut raw = "x".repeat(usize::from(*shift));
            raw.extend(seed.iter().map(|byte| parts[usize::from(*byte) % parts.len()]));
            let mut place = usize::from(*shift) * 7 % (raw.len() + 1);
            while !raw.is_char_boundary(place) {
                place -= 1;
            }
            for extra in ["", "\\", "x", "\\\\", "\\q", "\\ude00"] {
                let mut raw = raw.clone();
                raw.insert_str(place, extra);
                let theirs = serde_json::from_str::<String>(&format!("\"{raw}\""));
                if raw.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 && !raw.contains('"') {
                    assert_eq!(plain(&raw).ok(), theirs.ok(), "{raw}");
                } else {
                    let _agrees = plain(&raw);
                }
            }
        });
    }

    #[test]
    fn ranges_are_copied_as_they_are() {
        let text: Vec<u8> = (0..4000u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        let (mut out, mut expected) = (Staging::default(), Vec::new());
        for length in (0..100).chain(1000..1100).chain([3000]) {
            for start in [0, 1, 77, text.len() - length] {
                out.range(&text, start..start + length);
                out.byte(0xFF);
                expected.extend_from_slice(&text[start..start + length]);
                expected.push(0xFF);
            }
        }
        assert!(out.written() == expected);
    }

    #[test]
    fn every_length_and_place_of_an_escape() {
        for length in 0..200 {
            for place in 0..=length {
                let raw = "x".repeat(length);
                for (escape, text) in [("\\u00e9", "é"), ("\\\\", "\\"), ("\\t", "\t"), ("\\ud83d\\ude00", "😀")] {
                    let mut raw = raw.clone();
                    raw.insert_str(place, escape);
                    assert_eq!(plain(&raw).unwrap(), raw.replace(escape, text));
                }
                for bad in ["\\x", "\\\\\\x", "\\ude00", "\\ud83d", "\\ud83dé\\ude00"] {
                    let mut raw = raw.clone();
                    raw.insert_str(place, bad);
                    assert!(plain(&raw).is_err(), "{raw}");
                }
            }
        }
    }

    #[test]
    fn halves_of_characters_are_refused() {
        for raw in ["\\ud83d", "\\ude00", "\\ud83dx", "\\ud83d\\n", "\\ud83d\\u0041", "\\ud83d\\ud83d"] {
            assert_eq!(plain(raw), Err(BodyFault::Utf8), "{raw}");
        }
        assert_eq!(plain("ab\\x"), Err(BodyFault::Syntax { offset: Some(2) }));
        assert_eq!(plain("\\u12"), Err(BodyFault::Syntax { offset: Some(0) }));
        assert_eq!(plain("\\u12g4"), Err(BodyFault::Syntax { offset: Some(0) }));
    }

    #[test]
    fn keys_behind_escapes_are_known() {
        assert!(says(b"mod\\u0065l", b"model"));
        assert!(says(b"\\u006d\\u006f\\u0064\\u0065\\u006c", b"model"));
        assert!(!says(b"mod\\u0065", b"model"));
        assert!(!says(b"mod\\q", b"model"));
    }
}
