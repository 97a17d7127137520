//! Token counts out of an answer's JSON, without parsing the answer: find the `usage` object, read that.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What an engine says it read, reused and wrote, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that came from the engine's cache.
    pub cached_tokens: Option<u64>,
    /// Tokens generated.
    pub output_tokens: Option<u64>,
}

/// Greatest object looked into, bytes.
const OBJECT_BYTES_MAX: usize = 8192;
/// Most places that look like a `usage` object tried in one text.
const CANDIDATES_MAX: usize = 64;
/// Deepest nesting looked into.
const DEPTH_MAX: u32 = 8;

/// The counts as engines name them, the greatest seen of each: counts only grow while an answer streams, and some
/// servers repeat a field as 0 in a later event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// `prompt_tokens`.
    prompt: Option<u64>,
    /// `input_tokens`: with Anthropic's names it excludes what the next two count.
    input: Option<u64>,
    /// `cache_read_input_tokens`.
    cache_read: Option<u64>,
    /// `cache_creation_input_tokens`.
    cache_creation: Option<u64>,
    /// `cached_tokens`, in `…_details` or beside the others.
    cached: Option<u64>,
    /// `completion_tokens` or `output_tokens`.
    output: Option<u64>,
    /// `total_tokens`: what embeddings and rerank may give alone.
    total: Option<u64>,
    /// llama.cpp's `timings`: tokens of the prompt taken from the cache, and computed.
    timing_cached: Option<u64>,
    timing_computed: Option<u64>,
}

impl Counts {
    /// The counts in common terms.
    pub(super) fn usage(&self) -> Usage {
        let extra = self.cache_read.unwrap_or(0).saturating_add(self.cache_creation.unwrap_or(0));
        let timed =
            self.timing_cached.zip(self.timing_computed).map(|(cached, computed)| cached.saturating_add(computed));
        Usage {
            prompt_tokens: self
                .prompt
                .or_else(|| self.input.map(|input| input.saturating_add(extra)))
                .or_else(|| self.total.filter(|_| self.output.is_none()))
                .or(timed),
            cached_tokens: self.cached.or(self.cache_read).or(self.timing_cached),
            output_tokens: self.output,
        }
    }

    /// Reads every `usage` object of a whole JSON text, and llama.cpp's `timings` beside one.
    pub(super) fn read_all(&mut self, json: &[u8], finders: &Finders) {
        let mut found = false;
        for at in finders.usage.find_iter(json).take(CANDIDATES_MAX) {
            found |= json.get(at + NEEDLE_USAGE.len()..).is_some_and(|rest| self.read_object(rest));
        }
        if found && let Some(at) = finders.timings.find(json) {
            json.get(at + NEEDLE_TIMINGS.len()..).map(|rest| self.read_object(rest));
        }
    }

    /// Reads the last `usage` object of a JSON text that may be cut at its front. True when there is one.
    pub(super) fn read_last(&mut self, json: &[u8]) -> bool {
        let mut candidates = memchr::memmem::rfind_iter(json, NEEDLE_USAGE).take(CANDIDATES_MAX);
        candidates.any(|at| json.get(at + NEEDLE_USAGE.len()..).is_some_and(|rest| self.read_object(rest)))
    }

    /// Reads llama.cpp's `timings`.
    pub(super) fn read_timings(&mut self, json: &[u8]) {
        if let Some(at) = memchr::memmem::rfind(json, NEEDLE_TIMINGS) {
            json.get(at + NEEDLE_TIMINGS.len()..).map(|rest| self.read_object(rest));
        }
    }

    /// Reads a whole object whose members are the counts (count_tokens answers so).
    pub(super) fn read_bare(&mut self, json: &[u8]) -> bool {
        self.read_members(json.trim_ascii())
    }

    /// Reads the object after a key: `: {…}`. Anything else says nothing.
    fn read_object(&mut self, rest: &[u8]) -> bool {
        let Some(value) = rest.trim_ascii_start().strip_prefix(b":") else { return false };
        self.read_members(value.trim_ascii_start())
    }

    fn read_members(&mut self, object: &[u8]) -> bool {
        let mut read = *self;
        let any = Members { rest: object.get(..OBJECT_BYTES_MAX).unwrap_or(object), depth: 0 }.read(&mut read);
        if any {
            *self = read;
        }
        any
    }

    /// The counter a member at `depth` feeds.
    fn slot(&mut self, key: &[u8], depth: u32) -> Option<&mut Option<u64>> {
        Some(match (key, depth) {
            (b"cached_tokens", 1 | 2) | (b"prompt_cache_hit_tokens", 1) => &mut self.cached,
            (b"prompt_tokens", 1) => &mut self.prompt,
            (b"completion_tokens" | b"output_tokens", 1) => &mut self.output,
            (b"input_tokens", 1) => &mut self.input,
            (b"cache_read_input_tokens", 1) => &mut self.cache_read,
            (b"cache_creation_input_tokens", 1) => &mut self.cache_creation,
            (b"total_tokens", 1) => &mut self.total,
            (b"cache_n", 1) => &mut self.timing_cached,
            (b"prompt_n", 1) => &mut self.timing_computed,
            _ => return None,
        })
    }
}

const NEEDLE_USAGE: &[u8] = b"\"usage\"";
const NEEDLE_TIMINGS: &[u8] = b"\"timings\"";

/// Prepared searches; making one costs more than using it.
#[derive(Debug)]
pub(super) struct Finders {
    pub(super) usage: Finder<'static>,
    pub(super) timings: Finder<'static>,
    pub(super) delta: Finder<'static>,
    pub(super) text: Finder<'static>,
}

/// The searches every answer needs.
pub(super) static FINDERS: LazyLock<Finders> = LazyLock::new(|| Finders {
    usage: Finder::new(NEEDLE_USAGE),
    timings: Finder::new(NEEDLE_TIMINGS),
    delta: Finder::new(b"\"delta\""),
    text: Finder::new(b"\"text\""),
});

/// Walks one small object.
struct Members<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Members<'a> {
    /// Reads to the object's end. True when it ended and held a known count; `counts` is good only then.
    fn read(mut self, counts: &mut Counts) -> bool {
        let mut any = false;
        let mut key: &'a [u8] = &[];
        if self.rest.first() != Some(&b'{') {
            return false;
        }
        while let Some((&byte, rest)) = self.rest.split_first() {
            match byte {
                b'{' | b'[' if self.depth < DEPTH_MAX => self.depth += 1,
                b'{' | b'[' => return false,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return any;
                    }
                }
                b'"' => {
                    let Some(text) = string_inside(rest) else { return false };
                    key = text;
                    self.rest = rest.get(text.len() + 1..).unwrap_or_default();
                    continue;
                }
                b'-' | b'0'..=b'9' => {
                    let (value, after) = number(self.rest);
                    if let (Some(value), Some(slot)) = (value, counts.slot(key, self.depth)) {
                        *slot = Some(slot.map_or(value, |seen| seen.max(value)));
                        any = true;
                    }
                    key = &[];
                    self.rest = after;
                    continue;
                }
                b',' => key = &[],
                // The seam where the middle of a long text was left out.
                0 => return false,
                _ => {}
            }
            self.rest = rest;
        }
        false
    }
}

/// The inside of a string, given what follows its opening quote.
pub(super) fn string_inside(rest: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', rest.get(at..)?)?;
        if rest.get(at) == Some(&b'"') {
            return rest.get(..at);
        }
        at += 2;
    }
}

/// The integer at the front, unless it has a sign, a fraction, an exponent or too many digits; and what follows.
fn number(text: &[u8]) -> (Option<u64>, &[u8]) {
    let is_part = |byte: &&u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
    let (digits, rest) = text.split_at(text.iter().take_while(is_part).count());
    let value = digits.iter().try_fold(0u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    });
    (value, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(json: &str) -> Usage {
        let mut counts = Counts::default();
        counts.read_last(json.as_bytes());
        let mut all = Counts::default();
        all.read_all(json.as_bytes(), &FINDERS);
        counts.read_timings(json.as_bytes());
        assert_eq!(all.usage(), counts.usage(), "{json}");
        counts.usage()
    }

    fn triple(prompt: u64, cached: u64, output: u64) -> Usage {
        Usage { prompt_tokens: Some(prompt), cached_tokens: Some(cached), output_tokens: Some(output) }
    }

    #[test]
    fn every_dialect() {
        let openai = r#"{"usage":{"prompt_tokens":10,"total_tokens":15,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":8,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":3}}}"#;
        assert_eq!(usage(openai), triple(10, 8, 5));
        let responses = r#"{"response":{"usage": {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 5, "output_tokens_details":{"reasoning_tokens":0}, "total_tokens": 15}}}"#;
        assert_eq!(usage(responses), triple(10, 8, 5));
        let anthropic = r#"{"usage":{"input_tokens":3,"cache_creation_input_tokens":2,"cache_read_input_tokens":5,"cache_creation":{"ephemeral_5m_input_tokens":99},"output_tokens":7}}"#;
        assert_eq!(usage(anthropic), triple(10, 5, 7));
        let deepseek = r#"{"usage":{"prompt_tokens":10,"completion_tokens":5,"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":6}}"#;
        assert_eq!(usage(deepseek), triple(10, 4, 5));
        let rerank = r#"{"usage":{"total_tokens":15}}"#;
        assert_eq!(usage(rerank).prompt_tokens, Some(15));
        let llama = r#"{"usage":{"completion_tokens":4,"prompt_tokens":25,"total_tokens":29},"timings":{"cache_n":20,"prompt_n":5,"prompt_ms":1.25}}"#;
        assert_eq!(usage(llama), triple(25, 20, 4));
    }

    #[test]
    fn what_only_looks_like_usage_is_not() {
        for json in [
            r#"{"content":"usage","usage":null}"#,
            r#"{"content":"\"usage\":{\"prompt_tokens\":3}"}"#,
            r#"{"usage":{"prompt_tokens":"3"}}"#,
            r#"{"usage":{"prompt_tokens":-3}}"#,
            r#"{"usage":{"prompt_tokens":3.5}}"#,
            r#"{"usage":{"prompt_tokens":99999999999999999999999}}"#,
            r#"{"usage":{"prompt_tokens":3"#,
            r#"{"usage":[{"prompt_tokens":3}]}"#,
            r#"{"usage":{"a":{"prompt_tokens":3}}}"#,
        ] {
            assert_eq!(usage(json), Usage::default(), "{json}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut counts = Counts::default();
            let mut object = b"{\"usage\":{\"cached_tokens\":1,".to_vec();
            object.extend_from_slice(bytes);
            counts.read_all(&object, &FINDERS);
            counts.read_last(bytes);
        });
    }
}
