//! What an answer said, as the bytes with which the next turn's prompt goes on. A client that continues a conversation sends
//! the messages it sent before and the assistant's behind them; the engine has the tokens of both in its cache. So what
//! [`super::build`] will write for that message is written here already, from the answer as it passes, with the escapes
//! as the engine sent them.
//!
//! Where it cannot be known how the client will send something back (reasoning, calls of the Responses API, a second
//! choice), what follows is left out: a prefix of the next prompt is all that is of use.

use super::{ITEM, JSON, PART, part};
use crate::parse::Api;
use crate::parse::sse::Event;
use crate::parse::usage::{FINDERS, string_inside};

/// Where the bytes go.
type Out<'o> = dyn FnMut(&[u8]) + 'o;

/// Follows one answer.
#[derive(Clone, Debug)]
pub(in crate::parse) struct Said {
    api: Api,
    at: At,
    compact: Compact,
}

/// What was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Nothing of the message.
    Start,
    /// Its role.
    Role,
    /// Text.
    Text,
    /// A tool call, by its number.
    Call(u64),
    /// What cannot be followed.
    Over,
}

impl Said {
    pub(in crate::parse) const fn new(api: Api) -> Self {
        Self { api, at: At::Start, compact: Compact { in_string: false, is_escaped: false, is_empty: true } }
    }

    /// Reads one event of a stream; `name` is its type.
    pub(in crate::parse) fn event(&mut self, event: &Event<'_>, name: &[u8], out: &mut Out<'_>) {
        if self.at == At::Over {
            return;
        }
        match self.api {
            Api::ChatCompletions => self.chat_event(event.data, out),
            Api::Completions => self.text_event(event.data, out),
            Api::Messages => self.anthropic_event(name, event.data, out),
            Api::Responses => self.response_event(name, event.data, out),
            Api::Embeddings | Api::CountTokens | Api::Rerank | Api::Tokenize | Api::Detokenize => {}
        }
    }

    /// Reads a whole answer.
    pub(in crate::parse) fn whole(&mut self, json: &[u8], out: &mut Out<'_>) {
        let top = |key: &[u8]| member(json, key);
        match self.api {
            Api::ChatCompletions => {
                let choice = top(b"choices").and_then(|choices| elements(choices).next());
                if let Some(message) = choice.and_then(|choice| member(choice, b"message")) {
                    // In the order of templates, whatever the order of the members.
                    let mut thoughts = members(message).filter(|(key, value)| is_thought(key) && !is_nothing(value));
                    if thoughts.next().is_some() {
                        self.at = At::Over;
                    }
                    self.text_of(member(message, b"content"), out);
                    self.calls(member(message, b"tool_calls"), out);
                }
            }
            Api::Completions => {
                let choice = top(b"choices").and_then(|choices| elements(choices).next());
                if let Some(text) = choice.and_then(|choice| string(member(choice, b"text")?)) {
                    out(text);
                }
            }
            Api::Messages => {
                for block in top(b"content").into_iter().flat_map(elements) {
                    self.block(block, out);
                    if let Some(input) = member(block, b"input").filter(|_| matches!(self.at, At::Call(_))) {
                        self.compact.write(input, out);
                    }
                }
            }
            Api::Responses => {
                for item in top(b"output").into_iter().flat_map(elements) {
                    if member(item, b"type").and_then(string) != Some(b"message") {
                        return;
                    }
                    self.at = At::Start;
                    for content in member(item, b"content").into_iter().flat_map(elements) {
                        self.text_of(member(content, b"text"), out);
                    }
                }
            }
            Api::Embeddings | Api::CountTokens | Api::Rerank | Api::Tokenize | Api::Detokenize => {}
        }
    }

    // -- events

    fn chat_event(&mut self, data: &[u8], out: &mut Out<'_>) {
        let Some(at) = FINDERS.delta.find(data) else { return };
        let (before, rest) = data.split_at(at);
        let Some(delta) = after_colon(rest.get(7..).unwrap_or_default()) else { return };
        if !is_first_choice(before) {
            return;
        }
        for (key, value) in members(delta) {
            match key {
                b"content" => self.text_of(Some(value), out),
                b"tool_calls" => self.calls(Some(value), out),
                key if is_thought(key) && !is_nothing(value) => self.at = At::Over,
                _ => {}
            }
        }
    }

    fn text_event(&self, data: &[u8], out: &mut Out<'_>) {
        let Some(choice) = member(data, b"choices").and_then(|choices| elements(choices).next()) else { return };
        let is_first = member(choice, b"index").is_none_or(|index| index == b"0");
        if let Some(text) = member(choice, b"text").filter(|_| is_first && self.at != At::Over).and_then(string) {
            out(text);
        }
    }

    fn anthropic_event(&mut self, name: &[u8], data: &[u8], out: &mut Out<'_>) {
        match name {
            b"content_block_start" => {
                if let Some(block) = member(data, b"content_block") {
                    self.block(block, out);
                }
            }
            b"content_block_delta" => {
                let Some(delta) = member(data, b"delta") else { return };
                match self.at {
                    At::Text => out(member(delta, b"text").and_then(string).unwrap_or_default()),
                    At::Call(_) => {
                        let piece = member(delta, b"partial_json").and_then(string).unwrap_or_default();
                        self.compact.write_unescaped(piece, out);
                    }
                    At::Start | At::Role | At::Over => {}
                }
            }
            b"content_block_stop" if matches!(self.at, At::Call(_)) && self.compact.is_empty => out(b"{}"),
            _ => {}
        }
    }

    fn response_event(&mut self, name: &[u8], data: &[u8], out: &mut Out<'_>) {
        match name {
            b"response.output_item.added" => {
                let kind = member(data, b"item").and_then(|item| string(member(item, b"type")?));
                self.at = if kind == Some(b"message") { At::Start } else { At::Over };
            }
            b"response.output_text.delta" => self.text_of(member(data, b"delta"), out),
            _ => {}
        }
    }

    // -- parts

    /// Text of the message, where `value` is a string that is not empty.
    fn text_of(&mut self, value: Option<&[u8]>, out: &mut Out<'_>) {
        let Some(text) = value.and_then(string).filter(|text| !text.is_empty()) else { return };
        match self.at {
            At::Over => return,
            At::Text => {}
            // Templates print text before calls.
            At::Call(_) => {
                self.at = At::Over;
                return;
            }
            At::Start | At::Role => {
                self.role(out);
                out(&[PART, part::TEXT]);
                self.at = At::Text;
            }
        }
        out(text);
    }

    /// Tool calls, or what comes next of them.
    fn calls(&mut self, calls: Option<&[u8]>, out: &mut Out<'_>) {
        for (place, call) in (0..).zip(calls.into_iter().flat_map(elements)) {
            if self.at == At::Over {
                return;
            }
            let number = member(call, b"index").map_or(Some(place), number);
            let (Some(number), Some(function)) = (number, member(call, b"function")) else { continue };
            if self.at != At::Call(number) {
                let Some(name) = member(function, b"name").and_then(string) else {
                    self.at = At::Over;
                    return;
                };
                self.role(out);
                out(&[PART, part::CALL]);
                out(name);
                out(&[PART, part::ARGUMENTS]);
                self.at = At::Call(number);
            }
            out(member(function, b"arguments").and_then(string).unwrap_or_default());
        }
    }

    /// The beginning of one of Anthropic's content blocks.
    fn block(&mut self, block: &[u8], out: &mut Out<'_>) {
        if self.at == At::Over {
            return;
        }
        match member(block, b"type").and_then(string).unwrap_or_default() {
            b"text" => {
                self.role(out);
                out(&[PART, part::TEXT]);
                out(member(block, b"text").and_then(string).unwrap_or_default());
                self.at = At::Text;
            }
            b"tool_use" => {
                self.role(out);
                out(&[PART, part::CALL]);
                out(member(block, b"name").and_then(string).unwrap_or_default());
                out(&[PART, part::ARGUMENTS, JSON]);
                self.at = At::Call(0);
                self.compact = Compact { in_string: false, is_escaped: false, is_empty: true };
            }
            _ => self.at = At::Over,
        }
    }

    fn role(&mut self, out: &mut Out<'_>) {
        if self.at == At::Start {
            out(&[ITEM]);
            out(b"assistant");
            self.at = At::Role;
        }
    }
}

/// JSON without the white space between its tokens, piece by piece.
#[derive(Clone, Copy, Debug)]
struct Compact {
    in_string: bool,
    is_escaped: bool,
    is_empty: bool,
}

impl Compact {
    fn write(&mut self, json: &[u8], out: &mut Out<'_>) {
        json.iter().for_each(|byte| self.byte(*byte, out));
    }

    /// `text` is the inside of a string whose text is JSON.
    fn write_unescaped(&mut self, text: &[u8], out: &mut Out<'_>) {
        let mut rest = text;
        while let Some((&byte, more)) = rest.split_first() {
            rest = more;
            if byte != b'\\' {
                self.byte(byte, out);
                continue;
            }
            let Some((&kind, more)) = rest.split_first() else { return };
            rest = more;
            match kind {
                b'n' | b'r' | b't' => self.byte(b' ', out),
                // As it will be sent when the JSON is not wrapped in a string any more.
                b'u' => {
                    self.byte(b'\\', out);
                    self.byte(b'u', out);
                }
                other => self.byte(other, out),
            }
        }
    }

    fn byte(&mut self, byte: u8, out: &mut Out<'_>) {
        if !self.in_string && byte.is_ascii_whitespace() {
            return;
        }
        let ends = std::mem::take(&mut self.is_escaped);
        if self.in_string {
            self.is_escaped = byte == b'\\' && !ends;
        }
        if byte == b'"' && !ends {
            self.in_string = !self.in_string;
        }
        self.is_empty = false;
        out(&[byte]);
    }
}

// -- JSON, as far as it takes: engines' own, so what is odd is passed over.

/// What the model thought: clients send it back or not, and templates print it or not.
fn is_thought(key: &[u8]) -> bool {
    matches!(key, b"reasoning" | b"reasoning_content" | b"thinking" | b"refusal" | b"function_call")
}

/// Null, an empty string, an empty list.
fn is_nothing(value: &[u8]) -> bool {
    matches!(value, b"null" | b"\"\"" | b"[]" | b"{}")
}

/// `before` is what stands before a choice's delta: its `index`, where it has one there, is 0.
fn is_first_choice(before: &[u8]) -> bool {
    let Some(at) = memchr::memmem::rfind(before, b"\"index\"") else { return true };
    let index = after_colon(before.get(at + 7..).unwrap_or_default()).and_then(number);
    index.is_none_or(|index| index == 0)
}

fn after_colon(rest: &[u8]) -> Option<&[u8]> {
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).take(18);
    digits.fold(None, |number, digit| Some(number.unwrap_or(0) * 10 + u64::from(digit - b'0')))
}

/// The inside of a string.
fn string(value: &[u8]) -> Option<&[u8]> {
    string_inside(value.strip_prefix(b"\"")?)
}

fn member<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    members(object).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Keys and values of the object that `text` begins with; none where it begins with anything else.
fn members(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = text.trim_ascii_start().strip_prefix(b"{").unwrap_or_default();
    std::iter::from_fn(move || {
        rest = after_comma(rest);
        let key = string(rest)?;
        let value = after_colon(rest.get(key.len() + 2..)?)?;
        let length = value_length(value)?;
        rest = value.get(length..)?;
        Some((key, value.get(..length)?.trim_ascii_end()))
    })
}

/// The elements of the array that `text` begins with.
fn elements(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text.trim_ascii_start().strip_prefix(b"[").unwrap_or_default();
    std::iter::from_fn(move || {
        rest = after_comma(rest);
        let length = value_length(rest).filter(|length| *length > 0)?;
        let (value, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(value.trim_ascii_end())
    })
}

fn after_comma(rest: &[u8]) -> &[u8] {
    let rest = rest.trim_ascii_start();
    rest.strip_prefix(b",").unwrap_or(rest).trim_ascii_start()
}

/// The length of the value that `text` begins with; `None` when it is cut off.
fn value_length(text: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    loop {
        match text.get(at)? {
            b'"' => at += string(text.get(at..)?)?.len() + 2,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b',' if depth == 0 => return Some(at),
            // The seam where the middle of a long text was left out.
            0 => return None,
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests;
