//! A file's lines, one at a time and none longer than a bound, whether it is gzipped or not.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::LineFault;

/// Longest line: a session of 4,096 turns has about 130 kB, a prompt of a million tokens 20 kB.
pub(super) const LINE_BYTES_MAX: usize = 4 << 20;
/// Lines of nothing are skipped, but not without end.
const BLANK_MAX: u32 = 100_000;

/// Opens a file; gzip is told by its first bytes, not by the name.
pub(super) fn open(path: &Path) -> std::io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    let is_gzip = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn BufRead> =
        if is_gzip { Box::new(BufReader::with_capacity(64 << 10, MultiGzDecoder::new(file))) } else { Box::new(file) };
    Ok(plain)
}

/// The lines of a text, of which one is kept.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
    is_kept: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) const fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0, is_kept: false }
    }

    /// The number of the line that was read last, from 1.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// The next line is the one that was read last.
    pub(super) const fn again(&mut self) {
        self.is_kept = true;
    }

    /// The next line that is not blank, without its end; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, LineFault> {
        if std::mem::take(&mut self.is_kept) {
            return Ok(Some(self.line.trim_ascii()));
        }
        for _ in 0..BLANK_MAX {
            self.number += 1;
            self.line.clear();
            let bound = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
            let read = (&mut self.input).take(bound).read_until(b'\n', &mut self.line);
            match read.map_err(LineFault::Read)? {
                0 => return Ok(None),
                _ if self.line.len() > LINE_BYTES_MAX => return Err(LineFault::TooLong),
                _ => {}
            }
            if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(self.line.trim_ascii()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut lines = Lines::new(text);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap().map(<[u8]>::to_vec) {
            found.push((lines.number(), line));
        }
        found
    }

    #[test]
    fn ends_marks_and_blank_lines_are_not_part_of_a_line() {
        let expected = [(1, b"a".to_vec()), (4, b"b".to_vec()), (5, b"c".to_vec())];
        assert_eq!(all(b"\xef\xbb\xbfa\r\n\n  \nb\nc"), expected);
        assert_eq!(all(b""), []);
    }

    #[test]
    fn a_line_can_be_read_again() {
        let mut lines = Lines::new(&b"a\nb"[..]);
        assert_eq!(lines.next().unwrap(), Some(&b"a"[..]));
        lines.again();
        assert_eq!(lines.next().unwrap(), Some(&b"a"[..]));
        assert_eq!(lines.next().unwrap(), Some(&b"b"[..]));
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let endless = BufReader::new(std::io::repeat(b'x'));
        assert!(matches!(Lines::new(endless).next(), Err(LineFault::TooLong)));
    }
}
