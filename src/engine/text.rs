//! Lines of a Prometheus text page, without allocation: name, labels, value. Only what a reader asks for is looked at;
//! nothing here is copied. The format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::borrow::Cow;

/// Longest line that is read, bytes; vLLM's longest is 1.5 kB. Longer ones count as broken.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 10;
/// Most labels of one line that are looked at.
const LABELS_MAX: usize = 64;

/// One line that holds a sample: `name{labels} value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'p> {
    /// The metric's name.
    pub(crate) name: &'p [u8],
    /// All that follows the name.
    rest: &'p [u8],
}

/// What one line of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind<'p> {
    /// A comment, or nothing.
    Blank,
    /// A sample, as far as its name shows.
    Sample(Line<'p>),
    /// Not Prometheus text.
    Broken,
}

/// The lines of `page`, each without its end.
pub(crate) fn lines(page: &[u8]) -> impl Iterator<Item = Kind<'_>> {
    let mut rest = Some(page);
    std::iter::from_fn(move || {
        let text = rest?;
        let (line, after) = match memchr::memchr(b'\n', text) {
            Some(end) => (text.get(..end)?, text.get(end + 1..)),
            None => (text, None),
        };
        rest = after;
        Some(kind(line))
    })
}

fn kind(line: &[u8]) -> Kind<'_> {
    if line.len() > LINE_BYTES_MAX {
        return Kind::Broken;
    }
    let line = line.trim_ascii();
    match line.first() {
        None | Some(b'#') => return Kind::Blank,
        Some(first) if first.is_ascii_alphabetic() || matches!(first, b'_' | b':') => {}
        Some(_) => return Kind::Broken,
    }
    match memchr::memchr3(b'{', b' ', b'\t', line) {
        Some(end) => {
            let (name, rest) = line.split_at(end);
            Kind::Sample(Line { name, rest })
        }
        None => Kind::Broken,
    }
}

impl<'p> Line<'p> {
    /// The labels and the value, unless the line is broken. A time stamp after the value is left out.
    pub(crate) fn parts(&self) -> Option<(Labels<'p>, f64)> {
        let (labels, rest) = match self.rest.trim_ascii_start().strip_prefix(b"{") {
            Some(inner) => {
                let end = end_of_labels(inner)?;
                (inner.get(..end)?, inner.get(end + 1..)?)
            }
            None => (&b""[..], self.rest),
        };
        let mut words = rest.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        let value = number(words.next()?)?;
        Some((Labels { text: labels }, value))
    }
}

/// A number as Prometheus writes it: `5`, `1.5e+03`, `NaN`, `+Inf`.
fn number(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Where the `}` stands that closes the labels: not one within quotes.
fn end_of_labels(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let step = memchr::memchr2(b'"', b'}', text.get(at..)?)?;
        at += step;
        if text.get(at) == Some(&b'}') {
            return Some(at);
        }
        at += 1 + end_of_quotes(text.get(at + 1..)?)? + 1;
    }
}

/// Where the `"` stands that closes a quoted text: not one after a backslash.
fn end_of_quotes(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text.get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

/// The labels of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Labels<'p> {
    text: &'p [u8],
}

impl<'p> Labels<'p> {
    /// The value of the label `name`, escapes undone; `None` when it has none or it is not UTF-8.
    pub(crate) fn get(&self, name: &str) -> Option<Cow<'p, str>> {
        self.raw(name).and_then(unescaped)
    }

    /// Whether the label `name` has just this value. (Values with escapes never do: nobody asks for such.)
    pub(crate) fn has(&self, name: &str, value: &str) -> bool {
        self.raw(name) == Some(value.as_bytes())
    }

    fn raw(&self, name: &str) -> Option<&'p [u8]> {
        let mut rest = self.text;
        for _ in 0..LABELS_MAX {
            let equals = memchr::memchr(b'=', rest)?;
            let key = rest.get(..equals)?.trim_ascii();
            let quoted = rest.get(equals + 1..)?.trim_ascii_start().strip_prefix(b"\"")?;
            let end = end_of_quotes(quoted)?;
            if key == name.as_bytes() {
                return quoted.get(..end);
            }
            let after = quoted.get(end + 1..)?.trim_ascii_start();
            rest = after.strip_prefix(b",").unwrap_or(after);
        }
        None
    }
}

fn unescaped(raw: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(raw).ok()?;
    if !text.contains('\\') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    Some(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Option<(String, Labels<'_>, f64)> {
        let mut found = lines(text.as_bytes()).filter_map(|kind| match kind {
            Kind::Sample(line) => Some(line),
            Kind::Blank | Kind::Broken => None,
        });
        let line = found.next()?;
        let (labels, value) = line.parts()?;
        Some((String::from_utf8_lossy(line.name).into_owned(), labels, value))
    }

    #[test]
    fn names_labels_and_values_are_found() {
        let (name, labels, value) =
            only("# HELP x y\nx:y_total{a=\"1\",b=\"}, \\\"c\\\"=\\\\\"} 1.5e+03 1700\n").unwrap();
        assert_eq!((name.as_str(), value.to_bits()), ("x:y_total", 1500_f64.to_bits()));
        assert_eq!(labels.get("a").as_deref(), Some("1"));
        assert_eq!(labels.get("b").as_deref(), Some("}, \"c\"=\\"));
        assert_eq!(labels.get("c"), None);
        assert!(labels.has("a", "1") && !labels.has("a", "2"));
        let (name, labels, value) = only("bare   7").unwrap();
        assert_eq!((name.as_str(), labels.text.len(), value.to_bits()), ("bare", 0, 7_f64.to_bits()));
        assert_eq!(only("spaced { a = \"1\" , b=\"2\", } 3").unwrap().1.get("b").as_deref(), Some("2"));
    }

    #[test]
    fn broken_lines_are_told_from_blank_ones() {
        for text in ["", "# x", "   ", "\r"] {
            assert!(lines(text.as_bytes()).all(|kind| kind == Kind::Blank), "{text:?}");
        }
        for text in ["{\"a\": 1}", "x", "<html>", "9x 1"] {
            assert!(lines(text.as_bytes()).all(|kind| kind == Kind::Broken), "{text:?}");
        }
        for text in ["x{ 1", "x{a=\"1} 1", "x{} y", "x ", "x{a=\"\\", "x{a=\"1\"}"] {
            assert_eq!(only(text).map(|(.., value)| value.to_bits()), None, "{text:?}");
        }
        let long = format!("x {}1", " ".repeat(LINE_BYTES_MAX));
        assert_eq!(lines(long.as_bytes()).next(), Some(Kind::Broken));
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            for kind in lines(bytes) {
                if let Kind::Sample(line) = kind
                    && let Some((labels, _)) = line.parts()
                {
                    let _ = (labels.get("a"), labels.has("b", "c"));
                }
            }
        });
    }
}
