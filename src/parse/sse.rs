//! Server-sent events out of chunks that end anywhere. Fields and line ends as the HTML standard has them (`\n`,
//! `\r\n`, `\r`; several `data` lines; comments). Memory is bounded: of a very long event the head and the tail stay.

/// Kept of a long text's front, bytes.
pub const HEAD_BYTES: usize = 4 << 10;
/// Kept of a long text's end, bytes.
pub const TAIL_BYTES: usize = 64 << 10;
/// Longest event name told apart.
const NAME_BYTES: usize = 64;

/// A text that grows; past head and tail its middle is left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    has_gap: bool,
}

impl Window {
    /// Appends.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        for piece in chunk.chunks(TAIL_BYTES) {
            self.bytes.extend_from_slice(piece);
            if self.bytes.len() > HEAD_BYTES + 2 * TAIL_BYTES {
                self.cut();
            }
        }
    }

    /// The text; where its middle is missing, one NUL stands. The same whatever the pushes' sizes were.
    pub(super) fn text(&mut self) -> &[u8] {
        if self.bytes.len() > HEAD_BYTES + TAIL_BYTES {
            self.cut();
        }
        if self.has_gap {
            // The seam takes the place of the tail's first byte.
            if let Some(seam) = self.bytes.get_mut(HEAD_BYTES) {
                *seam = 0;
            }
        }
        &self.bytes
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets the text, and memory that only a long one needs.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(HEAD_BYTES);
        self.has_gap = false;
    }

    /// Bytes of memory held.
    pub(super) const fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    fn cut(&mut self) {
        self.bytes.drain(HEAD_BYTES..self.bytes.len() - TAIL_BYTES);
        self.has_gap = true;
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its `event` field; empty without one.
    pub name: &'a [u8],
    /// Its `data` lines, joined by `\n`.
    pub data: &'a [u8],
}

/// Splits a stream into events.
#[derive(Clone, Debug, Default)]
pub struct EventReader {
    /// The line that is not over yet.
    line: Window,
    name: Vec<u8>,
    data: Window,
    has_data: bool,
    after_return: bool,
}

impl EventReader {
    /// Reads on; calls `event` for each event that ends in `chunk`. An event that ends where the chunk ends is not
    /// copied.
    pub fn feed(&mut self, mut chunk: &[u8], mut event: impl FnMut(Event<'_>)) {
        while !chunk.is_empty() {
            if std::mem::take(&mut self.after_return)
                && let Some(rest) = chunk.strip_prefix(b"\n")
            {
                chunk = rest;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) else { break };
            let (line, rest) = chunk.split_at(end);
            self.after_return = rest.starts_with(b"\r");
            chunk = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() {
                self.take_line(line, self.is_blank_next(chunk), &mut event);
            } else {
                self.line.push(line);
                let mut whole = std::mem::take(&mut self.line);
                self.take_line(whole.text(), self.is_blank_next(chunk), &mut event);
                whole.clear();
                self.line = whole;
            }
        }
        if !chunk.is_empty() {
            self.line.push(chunk);
        }
    }

    /// The stream is over: an event that was not closed by an empty line is given out too, as some servers end so.
    pub fn finish(&mut self, mut event: impl FnMut(Event<'_>)) {
        let mut line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.take_line(line.text(), true, &mut event);
        }
        self.take_line(b"", false, &mut event);
    }

    /// Bytes of memory held.
    pub(super) const fn memory_bytes(&self) -> usize {
        self.line.memory_bytes() + self.data.memory_bytes() + self.name.capacity()
    }

    /// Does the line after this one come next, and is it empty?
    fn is_blank_next(&self, rest: &[u8]) -> bool {
        let rest = if self.after_return { rest.strip_prefix(b"\n").unwrap_or(rest) } else { rest };
        matches!(rest.first(), Some(b'\n' | b'\r'))
    }

    fn take_line(&mut self, line: &[u8], is_last: bool, event: &mut impl FnMut(Event<'_>)) {
        if line.is_empty() {
            if self.has_data {
                event(Event { name: &self.name, data: self.data.text() });
                self.data.clear();
                self.has_data = false;
            }
            self.name.clear();
            return;
        }
        let (field, value) = split_field(line);
        match field {
            b"data" if is_last && !self.has_data => {
                event(Event { name: &self.name, data: value });
                self.name.clear();
            }
            b"data" => {
                if self.has_data {
                    self.data.push(b"\n");
                }
                self.has_data = true;
                self.data.push(value);
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value.get(..NAME_BYTES).unwrap_or(value));
            }
            // Not of the standard: older llama.cpp tells errors so.
            b"error" => event(Event { name: b"error", data: value }),
            _ => {}
        }
    }
}

fn split_field(line: &[u8]) -> (&[u8], &[u8]) {
    let colon = line.iter().take(NAME_BYTES).position(|byte| *byte == b':').unwrap_or(line.len());
    let (field, value) = line.split_at(colon);
    let value = value.get(1..).unwrap_or_default();
    (field, value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Owned = Vec<(Vec<u8>, Vec<u8>)>;

    fn read(chunks: &[&[u8]]) -> Owned {
        let mut events = Owned::new();
        let mut reader = EventReader::default();
        for chunk in chunks {
            reader.feed(chunk, |event| events.push((event.name.to_vec(), event.data.to_vec())));
        }
        reader.finish(|event| events.push((event.name.to_vec(), event.data.to_vec())));
        events
    }

    #[test]
    fn fields_comments_and_line_ends() {
        let stream =
            b": hello\n\nevent: a\ndata: 1\n\ndata:2\r\ndata: 3\r\n\r\nevent:b\rdata\r\rid: 4\nretry: 5\n\ndata:  x";
        let expected: Owned =
            [("a", "1"), ("", "2\n3"), ("b", ""), ("", " x")].map(|(name, data)| (name.into(), data.into())).into();
        assert_eq!(read(&[stream]), expected);
        for at in 0..stream.len() {
            let (front, back) = stream.split_at(at);
            assert_eq!(read(&[front, back]), expected, "cut at {at}");
        }
        assert_eq!(read(&stream.chunks(1).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn any_cut_of_any_bytes_reads_the_same() {
        let words: [&[u8]; 10] = [b"data: ", b"data:", b"event: e", b"\n", b"\r\n", b"\r", b"\n\n", b":", b"x", b" "];
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(picks, cuts)| {
            let stream: Vec<u8> =
                picks.iter().flat_map(|pick| words[usize::from(*pick) % words.len()].iter().copied()).collect();
            let mut chunks: Vec<&[u8]> = Vec::new();
            let mut rest = stream.as_slice();
            for cut in cuts {
                let (front, back) = rest.split_at(rest.len().min(usize::from(*cut) % 16));
                chunks.push(front);
                rest = back;
            }
            chunks.push(rest);
            assert_eq!(read(&chunks), read(&[&stream]));
        });
    }

    #[test]
    fn long_events_keep_head_and_tail_and_bounded_memory() {
        let mut event = b"data: start".to_vec();
        event.resize(5_000_000, b'x');
        event.extend_from_slice(b"end\n\n");
        let whole = read(&[&event]);
        for size in [1000, 4096, 65_536, 1_000_000] {
            let mut reader = EventReader::default();
            let mut seen = Vec::new();
            for chunk in event.chunks(size) {
                reader.feed(chunk, |event| seen = event.data.to_vec());
                assert!(reader.memory_bytes() < 400_000);
            }
            assert!(seen.starts_with(b"start") && seen.ends_with(b"end"));
            assert!(seen.len() <= HEAD_BYTES + TAIL_BYTES);
            assert!(reader.memory_bytes() <= HEAD_BYTES + NAME_BYTES);
        }
        assert_eq!(whole.len(), 1);
    }
}
