//! Messages: role, name, reasoning, content parts, tool calls and results, each in the order in which templates print
//! them, whatever the order of the fields.

use crate::parse::document::Kind;
use crate::parse::prompt::{Builder, Built, ITEM, PART, part};
use crate::reject::BodyFault;

const MESSAGES_TYPE: BodyFault = BodyFault::Type { field: "messages", expected: "an array of messages" };
const CONTENT_TYPE: BodyFault =
    BodyFault::Type { field: "messages[].content", expected: "a string, an array of parts or null" };

impl Builder<'_, '_> {
    pub(super) fn messages(&mut self, messages: usize) -> Result<Built, BodyFault> {
        if self.doc.kind(messages) != Kind::Array {
            return Err(MESSAGES_TYPE);
        }
        self.each(messages, "messages", Self::message)
    }

    fn message(&mut self, at: usize) -> Result<(), BodyFault> {
        if self.doc.kind(at) != Kind::Object {
            return Err(BodyFault::Type { field: "messages[]", expected: "an object" });
        }
        let mut message = Message::default();
        for (key, value) in self.doc.members(at) {
            message.note(key, value)?;
        }
        self.write_message(&message)
    }

    fn write_message(&mut self, message: &Message) -> Result<(), BodyFault> {
        let role = message.role.ok_or(BodyFault::Missing { field: "messages[].role" })?;
        if self.doc.kind(role) != Kind::String {
            return Err(BodyFault::Type { field: "messages[].role", expected: "a string" });
        }
        self.out.byte(ITEM);
        self.doc.copy_string(role, self.out);
        for (tag, value) in
            [(part::NAME, message.name), (part::THOUGHT, message.reasoning_content), (part::THOUGHT, message.reasoning)]
        {
            self.optional(tag, value);
        }
        if let Some(content) = message.content {
            self.content(content)?;
        }
        self.optional(part::REFUSAL, message.refusal);
        if let Some(calls) = message.tool_calls.filter(|at| self.doc.kind(*at) != Kind::Null) {
            if self.doc.kind(calls) != Kind::Array {
                return Err(BodyFault::Type { field: "messages[].tool_calls", expected: "an array" });
            }
            self.doc.elements(calls).for_each(|call| self.tool_call(call));
        }
        if let Some(call) = message.function_call.filter(|at| self.doc.kind(*at) != Kind::Null) {
            self.tool_call(call);
        }
        Ok(())
    }

    /// A string, an array of parts, or null.
    pub(super) fn content(&mut self, at: usize) -> Result<(), BodyFault> {
        match self.doc.kind(at) {
            Kind::String => {
                self.part(part::TEXT, at);
                Ok(())
            }
            Kind::Null => Ok(()),
            Kind::Array => self.doc.elements(at).try_for_each(|element| match self.doc.kind(element) {
                Kind::String => {
                    self.part(part::TEXT, element);
                    Ok(())
                }
                Kind::Object => self.content_part(element),
                Kind::Number | Kind::Array | Kind::True | Kind::False | Kind::Null => {
                    Err(BodyFault::Type { field: "messages[].content[]", expected: "an object" })
                }
            }),
            Kind::Number | Kind::Object | Kind::True | Kind::False => Err(CONTENT_TYPE),
        }
    }

    fn content_part(&mut self, at: usize) -> Result<(), BodyFault> {
        let (mut kind, mut text) = (None, None);
        for (key, value) in self.doc.members(at) {
            match key {
                b"type" => kind = Some(value),
                b"text" => text = Some(value),
                _ => {}
            }
        }
        let kind = kind.map_or(&b"text"[..], |kind| self.doc.key(kind));
        match (kind, text) {
            (b"text" | b"input_text" | b"output_text", Some(text)) => {
                if self.doc.kind(text) != Kind::String {
                    return Err(BodyFault::Type { field: "messages[].content[].text", expected: "a string" });
                }
                self.part(part::TEXT, text);
            }
            (b"thinking", _) => self.members_as(at, &[(b"thinking", part::THOUGHT)]),
            (b"tool_use" | b"server_tool_use", _) => {
                self.members_as(at, &[(b"name", part::CALL), (b"input", part::ARGUMENTS)])
            }
            (b"tool_result", _) => self.tool_result(at),
            _ => {
                self.out.pair(PART, part::OTHER);
                self.json(at, &[b"id", b"signature"]);
            }
        }
        Ok(())
    }

    /// Writes the first member of each name as a part, in the order of `names`.
    fn members_as(&mut self, at: usize, names: &[(&[u8], u8)]) {
        for (name, tag) in names {
            if let Some((_, value)) = self.doc.members(at).find(|(key, _)| key == name) {
                self.part(*tag, value);
            }
        }
    }

    fn tool_result(&mut self, at: usize) {
        self.out.pair(PART, part::RESULT);
        let Some((_, content)) = self.doc.members(at).find(|(key, _)| *key == b"content") else { return };
        if self.doc.kind(content) != Kind::Array {
            return self.value(content);
        }
        for element in self.doc.elements(content) {
            let text = self.doc.members(element).find(|(key, _)| *key == b"text");
            match text.filter(|(_, text)| self.doc.kind(*text) == Kind::String) {
                Some((_, text)) => self.part(part::TEXT, text),
                None => self.part(part::OTHER, element),
            }
        }
    }

    /// `{"function": {"name": …, "arguments": …}}`, or the inner object alone (the older `function_call`).
    fn tool_call(&mut self, at: usize) {
        let function = self.doc.members(at).find(|(key, _)| *key == b"function").map(|(_, value)| value);
        let call = function.unwrap_or(at);
        if self.doc.members(call).any(|(key, _)| key == b"name") {
            return self.members_as(call, &[(b"name", part::CALL), (b"arguments", part::ARGUMENTS)]);
        }
        self.out.pair(PART, part::CALL);
        self.json(at, &[b"id"]);
    }

    /// An item of a Responses input: a message, or a call, a result, reasoning and so on.
    pub(super) fn response_item(&mut self, at: usize) -> Result<(), BodyFault> {
        if self.doc.kind(at) == Kind::String {
            self.item(b"user");
            self.part(part::TEXT, at);
            return Ok(());
        }
        if self.doc.kind(at) != Kind::Object {
            return Err(BodyFault::Type { field: "input[]", expected: "an object" });
        }
        let mut message = Message::default();
        let mut kind = None;
        for (key, value) in self.doc.members(at) {
            if key == b"type" {
                once(&mut kind, value, "input[].type")?;
            }
            message.note(key, value)?;
        }
        let kind = kind.map_or(&b"message"[..], |kind| self.doc.key(kind));
        if kind == b"message" {
            return self.write_message(&message);
        }
        self.item(b"");
        self.json(at, &[b"id", b"call_id", b"status"]);
        Ok(())
    }
}

/// Puts a value in its slot, once.
fn once(slot: &mut Option<usize>, value: usize, key: &'static str) -> Result<(), BodyFault> {
    if slot.replace(value).is_some() { Err(BodyFault::Duplicate { key }) } else { Ok(()) }
}

/// Where the fields of a message stand.
#[derive(Debug, Default)]
struct Message {
    role: Option<usize>,
    name: Option<usize>,
    reasoning: Option<usize>,
    reasoning_content: Option<usize>,
    content: Option<usize>,
    refusal: Option<usize>,
    tool_calls: Option<usize>,
    function_call: Option<usize>,
}

impl Message {
    fn note(&mut self, key: &[u8], value: usize) -> Result<(), BodyFault> {
        match key {
            b"role" => once(&mut self.role, value, "messages[].role"),
            b"content" => once(&mut self.content, value, "messages[].content"),
            b"name" => once(&mut self.name, value, "messages[].name"),
            b"tool_calls" => once(&mut self.tool_calls, value, "messages[].tool_calls"),
            b"reasoning" => once(&mut self.reasoning, value, "messages[].reasoning"),
            b"reasoning_content" => once(&mut self.reasoning_content, value, "messages[].reasoning_content"),
            b"refusal" => once(&mut self.refusal, value, "messages[].refusal"),
            b"function_call" => once(&mut self.function_call, value, "messages[].function_call"),
            _ => Ok(()),
        }
    }
}
