//! The prompt as bytes to hash. They stand in the order in which engines' chat templates lay them out, whatever the
//! order of the fields in the body, because that is the order of the KV cache: tools, documents, system text, then
//! message after message. One more message only adds bytes at the end.
//!
//! Parts are set apart by bytes that UTF-8 never uses (0xF5 and up), so no text can imitate a boundary: two prompts
//! have the same bytes only when they have the same parts. Strings stand as they were sent: a client that writes the
//! same text with other escapes (`\u00e9` for `é`) has another prompt here, and misses the cache once. What moves between turns while the KV cache stays does
//! not enter: `cache_control`, ids of messages and calls, signatures, sampling settings.
//!
//! Here are the APIs, tools and plain inputs; messages are in [`message`].

use crate::parse::Api;
use crate::parse::document::{Document, Kind};
use crate::parse::fields::{Field, Fields, count};
use crate::parse::text::Staging;
use crate::reject::BodyFault;

mod message;
pub(super) mod said;

/// Starts a message, an input or a document to rank; its role follows.
const ITEM: u8 = 0xFF;
/// Starts a part of the item; one of `part`'s bytes and the part's text follow.
const PART: u8 = 0xFE;
/// Starts a tool.
const TOOL: u8 = 0xFD;
/// Starts a document that grounds the answer.
const GROUND: u8 = 0xFC;
/// Starts a JSON value that is not a string.
const JSON: u8 = 0xFB;
/// Start and end of the name of a tool's further member.
const OPEN: u8 = 0xF9;
const SHUT: u8 = 0xF8;

/// What a part is.
mod part {
    pub(super) const TEXT: u8 = b't';
    pub(super) const NAME: u8 = b'n';
    pub(super) const THOUGHT: u8 = b'h';
    pub(super) const REFUSAL: u8 = b'x';
    pub(super) const CALL: u8 = b'c';
    pub(super) const ARGUMENTS: u8 = b'a';
    pub(super) const RESULT: u8 = b'o';
    pub(super) const OTHER: u8 = b'p';
    pub(super) const DESCRIPTION: u8 = b'd';
    pub(super) const REST: u8 = b'r';
    pub(super) const SUFFIX: u8 = b's';
}

/// Names read below the top of a body, as keys or as a `type`.
pub(super) const NESTED_NAMES: &[&str] = &[
    "role",
    "name",
    "content",
    "reasoning",
    "reasoning_content",
    "refusal",
    "tool_calls",
    "function_call",
    "type",
    "text",
    "function",
    "arguments",
    "description",
    "parameters",
    "input_schema",
    "thinking",
    "input",
    "user_id",
    "cache_control",
    "id",
    "call_id",
    "status",
    "signature",
    "input_text",
    "output_text",
    "tool_use",
    "server_tool_use",
    "tool_result",
    "message",
];

/// Members that change while the KV cache does not, at any depth.
const VOLATILE: &[u8] = b"cache_control";

/// What the prompt turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Built {
    /// Messages, inputs or documents.
    pub(super) items: u32,
    /// The bytes are token ids.
    pub(super) tokens: bool,
}

const fn text(items: u32) -> Built {
    Built { items, tokens: false }
}

/// Writes the prompt of `doc` to `out`.
pub(super) fn build(api: Api, doc: Document<'_>, fields: &Fields, out: &mut Staging) -> Result<Built, BodyFault> {
    let mut builder = Builder { doc, out };
    match api {
        Api::ChatCompletions => builder.chat(fields),
        Api::Messages | Api::CountTokens => builder.anthropic(fields),
        Api::Responses => builder.responses(fields),
        Api::Completions => builder.completions(fields),
        Api::Embeddings => match fields.get(doc, Field::Input) {
            None if fields.get(doc, Field::Messages).is_some() => builder.chat(fields),
            _ => builder.inputs(fields.required(doc, Field::Input)?, "input", true),
        },
        Api::Rerank => builder.rerank(fields),
        Api::Tokenize => match (fields.get(doc, Field::Prompt), fields.get(doc, Field::Content)) {
            (Some(prompt), _) => builder.inputs(prompt, "prompt", false),
            (None, Some(content)) => builder.inputs(content, "content", false),
            (None, None) if fields.get(doc, Field::Messages).is_some() => builder.chat(fields),
            (None, None) => Err(BodyFault::Missing { field: "prompt" }),
        },
        Api::Detokenize => {
            let tokens = fields.required(doc, Field::Tokens)?;
            if doc.kind(tokens) != Kind::Array {
                return Err(BodyFault::Type { field: "tokens", expected: "an array of token ids" });
            }
            builder.token_ids(tokens, "tokens")?;
            Ok(Built { items: 1, tokens: true })
        }
    }
}

/// Writes a document's prompt.
struct Builder<'a, 's> {
    doc: Document<'a>,
    out: &'s mut Staging,
}

impl<'a> Builder<'a, '_> {
    // -- the APIs

    fn chat(&mut self, fields: &Fields) -> Result<Built, BodyFault> {
        self.tools(fields, Field::Tools, "tools")?;
        self.tools(fields, Field::Functions, "functions")?;
        if let Some(documents) = fields.get(self.doc, Field::Documents) {
            for document in self.doc.elements(documents) {
                self.out.byte(GROUND);
                self.value(document);
            }
        }
        self.messages(fields.required(self.doc, Field::Messages)?)
    }

    fn anthropic(&mut self, fields: &Fields) -> Result<Built, BodyFault> {
        self.tools(fields, Field::Tools, "tools")?;
        self.system(fields.get(self.doc, Field::System), "system")?;
        self.messages(fields.required(self.doc, Field::Messages)?)
    }

    fn responses(&mut self, fields: &Fields) -> Result<Built, BodyFault> {
        self.tools(fields, Field::Tools, "tools")?;
        self.system(fields.get(self.doc, Field::Instructions), "instructions")?;
        let input = fields.required(self.doc, Field::Input)?;
        match self.doc.kind(input) {
            Kind::String => {
                self.item(b"user");
                self.part(part::TEXT, input);
                Ok(text(1))
            }
            Kind::Array => self.each(input, "input", Self::response_item),
            Kind::Number | Kind::Object | Kind::True | Kind::False | Kind::Null => {
                Err(BodyFault::Type { field: "input", expected: "a string or an array of items" })
            }
        }
    }

    fn completions(&mut self, fields: &Fields) -> Result<Built, BodyFault> {
        let built = match (fields.get(self.doc, Field::Prompt), fields.get(self.doc, Field::PromptEmbeds)) {
            (None, Some(embeds)) => {
                self.item(b"");
                self.value(embeds);
                text(1)
            }
            (None, None) => return Err(BodyFault::Missing { field: "prompt" }),
            (Some(prompt), _) => self.inputs(prompt, "prompt", false)?,
        };
        if let Some(suffix) = fields.get(self.doc, Field::Suffix)
            && !built.tokens
        {
            if self.doc.kind(suffix) != Kind::String {
                return Err(BodyFault::Type { field: "suffix", expected: "a string" });
            }
            self.part(part::SUFFIX, suffix);
        }
        Ok(built)
    }

    fn rerank(&mut self, fields: &Fields) -> Result<Built, BodyFault> {
        let query = fields.required(self.doc, Field::Query)?;
        if !matches!(self.doc.kind(query), Kind::String | Kind::Object) {
            return Err(BodyFault::Type { field: "query", expected: "a string" });
        }
        self.item(b"");
        self.value(query);
        let documents = fields.required(self.doc, Field::Documents)?;
        // Some engines take one object that holds the documents' parts.
        if self.doc.kind(documents) == Kind::Object {
            self.item(b"");
            self.value(documents);
            return Ok(text(1));
        }
        if self.doc.kind(documents) != Kind::Array {
            return Err(BodyFault::Type { field: "documents", expected: "an array of strings or objects" });
        }
        self.each(documents, "documents", |this, document| {
            if !matches!(this.doc.kind(document), Kind::String | Kind::Object) {
                return Err(BodyFault::Type { field: "documents[]", expected: "a string or an object" });
            }
            this.item(b"");
            this.value(document);
            Ok(())
        })
    }

    // -- tools and system text

    fn tools(&mut self, fields: &Fields, field: Field, name: &'static str) -> Result<(), BodyFault> {
        let Some(tools) = fields.get(self.doc, field) else { return Ok(()) };
        if self.doc.kind(tools) != Kind::Array {
            return Err(BodyFault::Type { field: name, expected: "an array" });
        }
        self.doc.elements(tools).for_each(|tool| self.tool(tool));
        Ok(())
    }

    /// Name, description and parameters first, as templates print them; anything else behind.
    fn tool(&mut self, outer: usize) {
        self.out.byte(TOOL);
        if self.doc.kind(outer) != Kind::Object {
            return self.value(outer);
        }
        let function = self.doc.members(outer).find(|(key, _)| *key == b"function").map(|(_, value)| value);
        let tool = function.filter(|at| self.doc.kind(*at) == Kind::Object).unwrap_or(outer);
        let (mut name, mut description, mut parameters, mut has_more) = (None, None, None, false);
        for (key, value) in self.doc.members(tool) {
            match key {
                b"name" => name = Some(value),
                b"description" => description = Some(value),
                b"parameters" | b"input_schema" => parameters = Some(value),
                VOLATILE => {}
                _ => has_more = true,
            }
        }
        for (tag, value) in [(part::NAME, name), (part::DESCRIPTION, description), (part::ARGUMENTS, parameters)] {
            if let Some(value) = value {
                self.part(tag, value);
            }
        }
        if has_more {
            for (key, value) in self.doc.members(tool) {
                if !matches!(key, b"name" | b"description" | b"parameters" | b"input_schema" | VOLATILE) {
                    self.out.array([PART, part::REST, OPEN]);
                    self.out.raw(key);
                    self.out.byte(SHUT);
                    self.value(value);
                }
            }
        }
    }

    fn system(&mut self, system: Option<usize>, field: &'static str) -> Result<(), BodyFault> {
        let Some(system) = system else { return Ok(()) };
        if !matches!(self.doc.kind(system), Kind::String | Kind::Array) {
            return Err(BodyFault::Type { field, expected: "a string or an array of parts" });
        }
        self.item(b"system");
        self.content(system)
    }

    // -- plain inputs

    /// A text, texts, token ids or lists of token ids; where `objects` is true, objects too.
    fn inputs(&mut self, at: usize, field: &'static str, objects: bool) -> Result<Built, BodyFault> {
        let fault =
            BodyFault::Type { field, expected: "a string, an array of strings, token ids, or arrays of token ids" };
        if self.doc.kind(at) == Kind::String {
            self.item(b"");
            self.part(part::TEXT, at);
            return Ok(text(1));
        }
        if self.doc.kind(at) != Kind::Array {
            return Err(fault);
        }
        let Some(first) = self.doc.elements(at).next() else { return Err(BodyFault::NoItems { field }) };
        match self.doc.kind(first) {
            kind @ (Kind::String | Kind::Object) if kind == Kind::String || objects => {
                self.each(at, field, |this, element| {
                    if this.doc.kind(element) != kind {
                        return Err(fault);
                    }
                    this.item(b"");
                    this.part(part::TEXT, element);
                    Ok(())
                })
            }
            Kind::Number => {
                self.token_ids(at, field)?;
                Ok(Built { items: 1, tokens: true })
            }
            Kind::Array => {
                let built = self.each(at, field, |this, element| {
                    if this.doc.kind(element) != Kind::Array {
                        return Err(fault);
                    }
                    if this.out.len() > 0 {
                        this.out.array(u32::MAX.to_le_bytes());
                    }
                    match this.token_ids(element, field)? {
                        0 => Err(BodyFault::NoItems { field }),
                        _ => Ok(()),
                    }
                })?;
                Ok(Built { tokens: true, ..built })
            }
            Kind::String | Kind::Object | Kind::True | Kind::False | Kind::Null => Err(fault),
        }
    }

    /// Four bytes an id. The greatest number stands between lists, so no id may be it.
    fn token_ids(&mut self, at: usize, field: &'static str) -> Result<u32, BodyFault> {
        let mut ids = 0;
        for element in self.doc.elements(at) {
            let id = count(self.doc, element, field)?;
            if id == u32::MAX {
                return Err(BodyFault::Range { field });
            }
            self.out.array(id.to_le_bytes());
            ids += 1;
        }
        Ok(ids)
    }

    // -- writing

    /// Calls `write` for each element and counts them; none is an error.
    fn each(
        &mut self,
        at: usize,
        field: &'static str,
        mut write: impl FnMut(&mut Self, usize) -> Result<(), BodyFault>,
    ) -> Result<Built, BodyFault> {
        let mut items = 0;
        for element in self.doc.elements(at) {
            write(self, element)?;
            items += 1;
        }
        if items == 0 { Err(BodyFault::NoItems { field }) } else { Ok(text(items)) }
    }

    fn item(&mut self, role: &[u8]) {
        self.out.byte(ITEM);
        self.out.raw(role);
    }

    fn optional(&mut self, tag: u8, at: Option<usize>) {
        if let Some(at) = at.filter(|at| self.doc.kind(*at) != Kind::Null) {
            self.part(tag, at);
        }
    }

    fn part(&mut self, tag: u8, at: usize) {
        self.out.pair(PART, tag);
        self.value(at);
    }

    /// A string as its text, anything else as a JSON value.
    fn value(&mut self, at: usize) {
        if self.doc.kind(at) == Kind::String { self.doc.copy_string(at, self.out) } else { self.json(at, &[]) }
    }

    /// A JSON value as sent but for the white space between its tokens, without members named in `skip` (at its own
    /// level) or `VOLATILE` (at any) and without their commas.
    fn json(&mut self, at: usize, skip: &[&[u8]]) {
        self.out.byte(JSON);
        let end = self.doc.after(at);
        let mut depth = 0usize;
        // Tokens that follow each other without a gap are copied together, from here on.
        let mut from = at;
        // Where a member is the first although a comma stands before it.
        let mut first = 0;
        let mut next = at;
        while next < end {
            if self.doc.has_gap_before(next) {
                self.doc.copy_tokens(from..next, self.out);
                from = next;
            }
            match self.doc.byte(next) {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'"' if self.skips(next, skip, depth) => {
                    self.doc.copy_tokens(from..next, self.out);
                    let is_first = next == first || self.doc.byte(next - 1) == b'{';
                    next = self.doc.after(next + 2);
                    if !is_first {
                        self.out.pop();
                    } else if self.doc.byte(next) == b',' {
                        next += 1;
                        first = next;
                    }
                    from = next;
                    continue;
                }
                _ => {}
            }
            next += 1;
        }
        self.doc.copy_tokens(from..end, self.out);
    }

    /// True when the string at token `key` is the key of a member to leave out.
    fn skips(&self, key: usize, skip: &[&[u8]], depth: usize) -> bool {
        // Most keys are none of these, and their first character says so.
        let looks_volatile = matches!(self.doc.second_byte(key), b'c' | b'\\');
        let is_own = depth == 1 && !skip.is_empty();
        if !looks_volatile && !is_own || self.doc.byte(key + 1) != b':' {
            return false;
        }
        let key: &'a [u8] = self.doc.key(key);
        key == VOLATILE || is_own && skip.contains(&key)
    }
}
