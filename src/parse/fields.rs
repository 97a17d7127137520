//! The fields of a body that decide its way: which ones there are, where each stands, and how each is read.

use std::ops::Range;

use crate::parse::Api;
use crate::parse::document::{Document, Kind};
use crate::parse::prompt::NESTED_NAMES;
use crate::parse::text::Staging;
use crate::reject::BodyFault;

macro_rules! fields {
    ($($name:ident = $bytes:literal,)*) => {
        /// A top-level field that is read. Standing twice in a body, it is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field { $($name,)* }

        /// Their names, in the enum's order.
        pub(super) const FIELD_NAMES: &[&str] = &[$(match str::from_utf8($bytes) {
            Ok(name) => name,
            Err(_) => "",
        },)*];

        impl Field {
            fn of(key: &[u8]) -> Option<Self> {
                Some(match key {
                    $($bytes => Self::$name,)*
                    _ => return None,
                })
            }
        }
    };
}

fields! {
    Model = b"model",
    Messages = b"messages",
    Stream = b"stream",
    MaxTokens = b"max_tokens",
    MaxCompletionTokens = b"max_completion_tokens",
    MaxOutputTokens = b"max_output_tokens",
    User = b"user",
    Tools = b"tools",
    System = b"system",
    Metadata = b"metadata",
    Prompt = b"prompt",
    Input = b"input",
    Suffix = b"suffix",
    Instructions = b"instructions",
    Functions = b"functions",
    Documents = b"documents",
    Query = b"query",
    Content = b"content",
    Tokens = b"tokens",
    PromptEmbeds = b"prompt_embeds",
    CacheSalt = b"cache_salt",
    LoraPath = b"lora_path",
    LoraName = b"lora_name",
    Adapter = b"adapter",
    AdapterId = b"adapter_id",
    SafetyIdentifier = b"safety_identifier",
    Conversation = b"conversation",
    SessionId = b"session_id",
    PromptCacheKey = b"prompt_cache_key",
    PreviousResponseId = b"previous_response_id",
}

/// Where each field stands: the token of its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    at: [u32; FIELD_NAMES.len()],
}

impl Fields {
    pub(super) const fn new() -> Self {
        Self { at: [0; FIELD_NAMES.len()] }
    }

    /// Takes note of a member of the outermost object.
    pub(super) fn note(&mut self, key: &[u8], value: usize) -> Result<(), BodyFault> {
        let Some(field) = Field::of(key) else { return Ok(()) };
        let slot = &mut self.at[field as usize];
        if *slot != 0 {
            return Err(BodyFault::Duplicate { key: FIELD_NAMES[field as usize] });
        }
        *slot = u32::try_from(value).unwrap_or(0);
        Ok(())
    }

    /// The value of `field`, unless it is absent or null.
    pub(super) fn get(&self, doc: Document<'_>, field: Field) -> Option<usize> {
        let at = self.at[field as usize] as usize;
        (at != 0 && doc.kind(at) != Kind::Null).then_some(at)
    }

    /// The value of a field that must be there.
    pub(super) fn required(&self, doc: Document<'_>, field: Field) -> Result<usize, BodyFault> {
        self.get(doc, field).ok_or(BodyFault::Missing { field: FIELD_NAMES[field as usize] })
    }
}

/// What routing reads beside the prompt. Texts are ranges of the side buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Routing {
    pub(super) model: Option<Range<usize>>,
    pub(super) model_span: Range<u32>,
    pub(super) stream: bool,
    pub(super) output_tokens_max: Option<u32>,
    pub(super) user: Option<Range<usize>>,
    pub(super) cache_salt: Option<Range<usize>>,
    pub(super) adapter: Option<Range<usize>>,
    pub(super) session: Option<Range<usize>>,
}

impl Routing {
    /// Reads the routing fields; texts go to `side`.
    pub(super) fn read(api: Api, doc: Document<'_>, fields: &Fields, side: &mut Staging) -> Result<Self, BodyFault> {
        let mut reader = Reader { doc, fields, side };
        let mut this = Self {
            stream: reader.flag(Field::Stream)?,
            output_tokens_max: reader.output_tokens_max()?,
            model: reader.strict_text(Field::Model)?,
            cache_salt: reader.strict_text(Field::CacheSalt)?,
            adapter: reader.first_text(&[Field::LoraPath, Field::LoraName, Field::Adapter, Field::AdapterId])?,
            session: reader.session()?,
            ..Self::default()
        };
        if let Some(at) = fields.get(doc, Field::Model) {
            this.model_span = span(doc, at);
        }
        if api.is_anthropic() {
            this.user = reader.anthropic_user()?;
            if this.session.is_none() {
                this.session = this.user.clone().and_then(|user| session_in_user(reader.side.written(), user));
            }
        } else {
            this.user = match reader.strict_text(Field::User)? {
                Some(user) => Some(user),
                None => reader.first_text(&[Field::SafetyIdentifier])?,
            };
        }
        Ok(this)
    }
}

struct Reader<'a, 's> {
    doc: Document<'a>,
    fields: &'s Fields,
    side: &'s mut Staging,
}

impl Reader<'_, '_> {
    fn flag(&self, field: Field) -> Result<bool, BodyFault> {
        match self.fields.get(self.doc, field).map(|at| self.doc.kind(at)) {
            None | Some(Kind::False) => Ok(false),
            Some(Kind::True) => Ok(true),
            Some(_) => Err(BodyFault::Type { field: FIELD_NAMES[field as usize], expected: "a boolean" }),
        }
    }

    /// The newest name wins, as it does in the engines.
    fn output_tokens_max(&self) -> Result<Option<u32>, BodyFault> {
        let mut newest = None;
        for field in [Field::MaxTokens, Field::MaxCompletionTokens, Field::MaxOutputTokens] {
            if let Some(at) = self.fields.get(self.doc, field) {
                newest = Some(count(self.doc, at, FIELD_NAMES[field as usize])?);
            }
        }
        Ok(newest)
    }

    fn text(&mut self, at: usize) -> Result<Range<usize>, BodyFault> {
        let start = self.side.len();
        self.side.unescaped(self.doc.string(at))?;
        Ok(start..self.side.len())
    }

    /// A text or null.
    fn strict_text(&mut self, field: Field) -> Result<Option<Range<usize>>, BodyFault> {
        let Some(at) = self.fields.get(self.doc, field) else { return Ok(None) };
        if self.doc.kind(at) != Kind::String {
            return Err(BodyFault::Type { field: FIELD_NAMES[field as usize], expected: "a string" });
        }
        self.text(at).map(Some)
    }

    /// The first of `names` that is a text. Engines give these fields other types too; those say nothing here.
    fn first_text(&mut self, names: &[Field]) -> Result<Option<Range<usize>>, BodyFault> {
        let mut texts = names.iter().filter_map(|field| self.fields.get(self.doc, *field));
        let found = texts.find(|at| self.doc.kind(*at) == Kind::String);
        found.map(|at| self.text(at)).transpose()
    }

    fn session(&mut self) -> Result<Option<Range<usize>>, BodyFault> {
        if let Some(at) = self.fields.get(self.doc, Field::Conversation)
            && let Some((_, id)) =
                self.doc.members(at).find(|(key, id)| *key == b"id" && self.doc.kind(*id) == Kind::String)
        {
            return self.text(id).map(Some);
        }
        self.first_text(&[Field::Conversation, Field::SessionId, Field::PromptCacheKey, Field::PreviousResponseId])
    }

    fn anthropic_user(&mut self) -> Result<Option<Range<usize>>, BodyFault> {
        let Some(metadata) = self.fields.get(self.doc, Field::Metadata) else { return Ok(None) };
        if self.doc.kind(metadata) != Kind::Object {
            return Err(BodyFault::Type { field: "metadata", expected: "an object" });
        }
        let mut found = None;
        for (key, value) in self.doc.members(metadata) {
            if key == b"user_id" && found.replace(value).is_some() {
                return Err(BodyFault::Duplicate { key: "metadata.user_id" });
            }
        }
        match found.map(|at| (at, self.doc.kind(at))) {
            None | Some((_, Kind::Null)) => Ok(None),
            Some((at, Kind::String)) => self.text(at).map(Some),
            Some(_) => Err(BodyFault::Type { field: "metadata.user_id", expected: "a string" }),
        }
    }
}

/// Coding agents put their session into the user id, as `…_session_ID` or as JSON text with a `session_id`.
fn session_in_user(side: &[u8], user: Range<usize>) -> Option<Range<usize>> {
    let text = side.get(user.clone())?;
    let (marker, closing): (&[u8], Option<u8>) =
        if text.starts_with(b"{") { (b"\"session_id\":\"", Some(b'"')) } else { (b"_session_", None) };
    let start = memchr::memmem::rfind(text, marker)? + marker.len();
    let rest = text.get(start..)?;
    let length = closing.map_or(Some(rest.len()), |byte| memchr::memchr(byte, rest))?;
    (length > 0).then_some(user.start + start..user.start + start + length)
}

/// Where the inside of the string at token `at` stands in the body.
fn span(doc: Document<'_>, at: usize) -> Range<u32> {
    let range = doc.string_range(at);
    u32::try_from(range.start).unwrap_or(0)..u32::try_from(range.end).unwrap_or(0)
}

/// A non-negative integer that fits 32 bits.
pub(super) fn count(doc: Document<'_>, at: usize, field: &'static str) -> Result<u32, BodyFault> {
    let digits = doc.token(at);
    let unsigned = digits.strip_prefix(b"-").unwrap_or(digits);
    if doc.kind(at) != Kind::Number || !unsigned.iter().all(u8::is_ascii_digit) {
        return Err(BodyFault::Type { field, expected: "an integer" });
    }
    let value = digits
        .iter()
        .try_fold(0u32, |value, digit| value.checked_mul(10)?.checked_add(u32::from(digit.checked_sub(b'0')?)));
    value.ok_or(BodyFault::Range { field })
}

/// The known name a key says, when it hides behind escapes.
pub(super) fn known_name(matches: impl Fn(&[u8]) -> bool) -> Option<&'static [u8]> {
    NESTED_NAMES.iter().chain(FIELD_NAMES).map(|name| name.as_bytes()).find(|name| matches(name))
}
