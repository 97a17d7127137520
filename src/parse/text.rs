//! JSON string text: unescaping into a staging buffer, and the check for escapes nobody read. Stage 1 has already
//! held that strings are closed, valid UTF-8 and free of raw control characters; escapes are what is left to check.

use std::ops::Range;

use crate::reject::BodyFault;

/// Bytes looked at together. Each block is stored whole before it is known how much of it counts, so every
/// destination keeps this much room behind what it may hold.
pub(super) const BLOCK: usize = 32;

/// A growing buffer that is written by whole blocks. It keeps its length between bodies, so that the bytes are
/// zeroed once and not for every request.
#[derive(Debug, Default)]
pub(super) struct Staging {
    bytes: Vec<u8>,
    used: usize,
    backslashes: usize,
}

impl Staging {
    /// Forgets the content, keeps the memory.
    pub(super) const fn clear(&mut self) {
        self.used = 0;
        self.backslashes = 0;
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

    /// Backslashes of the body that were read, and so checked, by [`Self::string`].
    pub(super) const fn backslashes(&self) -> usize {
        self.backslashes
    }

    /// Makes room for `more` bytes and a block behind them.
    pub(super) fn room(&mut self, more: usize) {
        let wanted = self.used + more + BLOCK;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted.max(self.bytes.len() * 2), 0);
        }
    }

    /// Appends one byte.
    pub(super) fn byte(&mut self, byte: u8) {
        self.room(1);
        if let Some(slot) = self.bytes.get_mut(self.used) {
            *slot = byte;
            self.used += 1;
        }
    }

    /// Appends two bytes.
    pub(super) fn pair(&mut self, first: u8, second: u8) {
        self.array([first, second]);
    }

    /// Appends a few bytes whose number is known when compiling.
    pub(super) fn array<const N: usize>(&mut self, bytes: [u8; N]) {
        self.room(N);
        if let Some(slot) = self.bytes.get_mut(self.used..).and_then(<[u8]>::first_chunk_mut::<N>) {
            *slot = bytes;
            self.used += N;
        }
    }

    /// Appends short bytes as they are.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.room(bytes.len());
        if let Some(slot) = self.bytes.get_mut(self.used..self.used + bytes.len()) {
            slot.copy_from_slice(bytes);
            self.used += bytes.len();
        }
    }

    /// Appends the inside of a JSON string, unescaped: `range` of the padded `text`.
    pub(super) fn string(&mut self, text: &[u8], range: Range<usize>) -> Result<(), BodyFault> {
        self.room(range.len());
        let out = self.bytes.get_mut(self.used..).unwrap_or_default();
        let copied = unescape(text, range, out).map_err(EscapeFault::into_body)?;
        self.used += copied.bytes;
        self.backslashes += copied.backslashes;
        Ok(())
    }
}

/// What [`unescape`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Bytes written.
    pub(super) bytes: usize,
    /// Backslashes met.
    pub(super) backslashes: usize,
}

/// An escape that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EscapeFault {
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

/// Unescapes `text[range]` to the front of `out`. `text` goes on for at least a block behind the range (with anything),
/// and `out` holds at least a block more than the range.
///
/// Text is copied in blocks of 32 bytes, stored before they are looked at; a bit mask then says where the backslashes
/// are, and after each escape the block is stored again, from there on. Real chat text has an escape about every 25
/// bytes, where searching for the next backslash first and copying second costs two calls an escape. (Blocks also keep
/// large copies away from `rep movsb`, which is slow at some alignments.)
pub(super) fn unescape(text: &[u8], range: Range<usize>, out: &mut [u8]) -> Result<Copied, EscapeFault> {
    let mut from = range.start;
    let mut done = Copied::default();
    while from < range.end {
        let mut mask = copy_block(text, from, out, done.bytes);
        let end = range.end.min(from + BLOCK);
        loop {
            let here = from + mask.trailing_zeros() as usize;
            if here >= end {
                done.bytes += end - from;
                from = end;
                break;
            }
            done.bytes += here - from;
            let next = unescape_one(text, here..range.end, out, &mut done)?;
            if next >= end {
                from = next;
                break;
            }
            mask = (mask >> (here - from)) >> (next - here);
            from = next;
            copy_block(text, from, out, done.bytes);
        }
    }
    Ok(done)
}

/// Copies a block, and says where in it the backslashes are.
#[inline]
fn copy_block(text: &[u8], from: usize, out: &mut [u8], to: usize) -> u64 {
    match (
        text.get(from..).and_then(<[u8]>::first_chunk::<BLOCK>),
        out.get_mut(to..).and_then(<[u8]>::first_chunk_mut::<BLOCK>),
    ) {
        (Some(block), Some(slot)) => {
            *slot = *block;
            backslashes(block)
        }
        _ => 0,
    }
}

/// One bit for each backslash in a block; beyond the block, ones, so that the search ends. Eight bytes a step: of
/// `x = word ^ '\\'*8`, the bytes that are zero keep their top bit clear in `(x & 0x7F…) + 0x7F… | x`; the product
/// gathers the eight top bits.
#[inline]
fn backslashes(block: &[u8; BLOCK]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const LOW: u64 = 0x7F * ONES;
    let (words, _) = block.as_chunks::<8>();
    let mut tops = [0u64; BLOCK / 8];
    for (top, word) in tops.iter_mut().zip(words) {
        let x = u64::from_le_bytes(*word) ^ (ONES * b'\\' as u64);
        *top = !(((x & LOW) + LOW) | x | LOW);
    }
    if tops.iter().fold(0, |all, top| all | top) == 0 {
        return u64::MAX << BLOCK;
    }
    let bits = |top: u64| (top >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    tops.iter().rev().fold(u64::MAX, |mask, top| mask << 8 | bits(*top))
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

/// Unescapes the escape at the range's start; returns where it ends.
#[inline]
fn unescape_one(text: &[u8], range: Range<usize>, out: &mut [u8], done: &mut Copied) -> Result<usize, EscapeFault> {
    let kind = text.get(range.start + 1).copied().unwrap_or(0);
    let simple = SIMPLE[usize::from(kind)];
    if simple != 0 && range.len() >= 2 {
        if let Some(slot) = out.get_mut(done.bytes) {
            *slot = simple;
        }
        done.bytes += 1;
        done.backslashes += 1 + usize::from(simple == b'\\');
        return Ok(range.start + 2);
    }
    let raw = text.get(..range.end).unwrap_or_default();
    let escape = read_escape(raw, range.start)?;
    let encoded = escape.scalar.len_utf8();
    if let Some(slot) = out.get_mut(done.bytes..done.bytes + encoded) {
        escape.scalar.encode_utf8(slot);
    }
    done.bytes += encoded;
    done.backslashes += escape.backslashes;
    Ok(range.start + escape.length)
}

#[derive(Clone, Copy, Debug)]
struct Escape {
    scalar: char,
    length: usize,
    backslashes: usize,
}

/// Reads the escape whose backslash is at `at`.
fn read_escape(raw: &[u8], at: usize) -> Result<Escape, EscapeFault> {
    match raw.get(at + 1) {
        Some(b'u') => read_unicode(raw, at),
        Some(kind) if SIMPLE[usize::from(*kind)] != 0 => {
            let scalar = char::from(SIMPLE[usize::from(*kind)]);
            Ok(Escape { scalar, length: 2, backslashes: 1 + usize::from(scalar == '\\') })
        }
        _ => Err(EscapeFault::Unknown(at)),
    }
}

fn read_unicode(raw: &[u8], at: usize) -> Result<Escape, EscapeFault> {
    let unit = read_hex(raw, at)?;
    if let Some(scalar) = char::from_u32(unit) {
        return Ok(Escape { scalar, length: 6, backslashes: 1 });
    }
    if unit >= 0xDC00 || raw.get(at + 6..at + 8) != Some(b"\\u") {
        return Err(EscapeFault::LoneSurrogate);
    }
    let low = read_hex(raw, at + 6)?;
    if !(0xDC00..0xE000).contains(&low) {
        return Err(EscapeFault::LoneSurrogate);
    }
    let scalar = char::from_u32(0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
    scalar.map(|scalar| Escape { scalar, length: 12, backslashes: 2 }).ok_or(EscapeFault::LoneSurrogate)
}

/// The four hex digits of the `\uXXXX` at `at`.
fn read_hex(raw: &[u8], at: usize) -> Result<u32, EscapeFault> {
    let digits = raw.get(at + 2..at + 6).ok_or(EscapeFault::Unknown(at))?;
    digits.iter().try_fold(0, |unit, &digit| {
        let value = char::from(digit).to_digit(16).ok_or(EscapeFault::Unknown(at))?;
        Ok(unit << 4 | value)
    })
}

/// Checks every escape in a body. Needed only when some were not read on the way: strings that routing skips.
pub(super) fn check_escapes(text: &[u8]) -> Result<(), BodyFault> {
    let mut at = 0;
    while let Some(step) = text.get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        let escape = read_escape(text, at + step).map_err(EscapeFault::into_body)?;
        at += step + escape.length;
    }
    Ok(())
}

/// True when the string `raw` says `name` once unescaped. For keys that hide behind escapes.
pub(super) fn says(raw: &[u8], name: &[u8]) -> bool {
    const LONGEST: usize = 6 * 24;
    let (mut text, mut out) = ([0; LONGEST + BLOCK], [0; LONGEST + BLOCK]);
    match text.get_mut(..raw.len()) {
        Some(front) if raw.len() <= LONGEST => front.copy_from_slice(raw),
        _ => return false,
    }
    unescape(&text, 0..raw.len(), &mut out).is_ok_and(|copied| out.get(..copied.bytes) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(raw: &str) -> Result<String, EscapeFault> {
        let mut out = vec![0xAA; raw.len() + BLOCK];
        let text = format!("{raw}\\{}", "\\n".repeat(BLOCK));
        let copied = unescape(text.as_bytes(), 0..raw.len(), &mut out)?;
        assert_eq!(copied.backslashes, raw.matches('\\').count());
        Ok(String::from_utf8(out[..copied.bytes].to_vec()).unwrap())
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
    fn masks_agree_with_the_bytes() {
        bolero::check!().with_type::<[u8; BLOCK]>().for_each(|bytes| {
            let block = bytes.map(|byte| b'\\' ^ if byte & 0x80 == 0 { byte % 3 } else { 0x80 });
            let expected = (0..BLOCK).fold(u64::MAX << BLOCK, |mask, at| mask | u64::from(block[at] == b'\\') << at);
            assert_eq!(backslashes(&block), expected);
        });
    }

    #[test]
    fn every_length_and_place_of_an_escape() {
        for length in 0..100 {
            for place in 0..=length {
                let mut raw = "x".repeat(length);
                raw.insert_str(place, "\\u00e9");
                assert_eq!(plain(&raw).unwrap(), raw.replace("\\u00e9", "é"));
            }
        }
    }

    #[test]
    fn halves_of_characters_are_refused() {
        for raw in ["\\ud83d", "\\ude00", "\\ud83dx", "\\ud83d\\n", "\\ud83d\\u0041", "\\ud83d\\ud83d"] {
            assert_eq!(plain(raw), Err(EscapeFault::LoneSurrogate), "{raw}");
        }
        assert_eq!(plain("ab\\x"), Err(EscapeFault::Unknown(2)));
        assert_eq!(plain("\\u12"), Err(EscapeFault::Unknown(0)));
        assert_eq!(plain("\\u12g4"), Err(EscapeFault::Unknown(0)));
    }

    #[test]
    fn keys_behind_escapes_are_known() {
        assert!(says(b"mod\\u0065l", b"model"));
        assert!(says(b"\\u006d\\u006f\\u0064\\u0065\\u006c", b"model"));
        assert!(!says(b"mod\\u0065", b"model"));
        assert!(!says(b"mod\\q", b"model"));
    }
}
