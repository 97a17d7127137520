//! YAML text → a tree in which every key and value knows its line and column, so that an error found much later still
//! points at the right place. Text, nesting and what aliases unfold to are bounded; duplicate keys are errors.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, options};

use super::error::{Errors, excerpt};

/// Longest file read, bytes.
pub const TEXT_BYTES_MAX: usize = 2 << 20;
/// Most values in a file, aliases unfolded: 4,096 replicas with every field set are about 40,000.
const NODES_MAX: usize = 200_000;
/// Most bytes of values, aliases unfolded.
const VALUE_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting; the configuration itself needs four levels.
const DEPTH_MAX: usize = 24;

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    /// From 1; 0 for a value that came from the command line.
    pub(crate) line: u32,
    /// From 1; 0 likewise.
    pub(crate) column: u32,
}

impl Mark {
    /// The first character of a file.
    pub(crate) const START: Self = Self { line: 1, column: 1 };
    /// Not in a file: a command-line flag.
    pub(crate) const FLAG: Self = Self { line: 0, column: 0 };

    fn of(span: &Span) -> Self {
        Self::at(span.start.line(), span.start.col())
    }

    /// The parser counts lines from 1 and columns from 0.
    fn at(line: usize, column: usize) -> Self {
        let bounded = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self { line: bounded(line), column: bounded(column).saturating_add(1) }
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line == 0 { f.write_str("on the command line") } else { write!(f, "at line {}", self.line) }
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) mark: Mark,
    pub(crate) value: Value,
}

/// What a value is. Scalars stay text: the field that reads one knows what it expects.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value`.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// What errors call the key, when it came from a command-line flag.
    pub(crate) label: Option<&'static str>,
    pub(crate) mark: Mark,
    pub(crate) value: Node,
}

impl Node {
    /// The kind of value, for messages.
    pub(crate) fn kind(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Scalar(text) => excerpt(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    /// Values, bytes and levels in the tree below and with this node.
    fn weight(&self) -> Weight {
        let mut weight = Weight { nodes: 1, bytes: 0, depth: 1 };
        match &self.value {
            Value::Null => {}
            Value::Scalar(text) => weight.bytes = text.len(),
            Value::List(items) => items.iter().for_each(|item| weight.add_child(item.weight())),
            Value::Map(entries) => entries.iter().for_each(|entry| {
                weight.bytes += entry.key.len();
                weight.add_child(entry.value.weight());
            }),
        }
        weight
    }
}

#[derive(Clone, Copy, Debug)]
struct Weight {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

impl Weight {
    fn add_child(&mut self, child: Self) {
        self.nodes += child.nodes;
        self.bytes += child.bytes;
        self.depth = self.depth.max(child.depth + 1);
    }
}

/// Reads one document.
///
/// Returns `None` when the text is not YAML at all, or beyond a bound; `errors` then says why. Other errors are recorded
/// and the rest is still read.
pub(crate) fn read(text: &str, errors: &Errors) -> Option<Node> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the file has {} bytes; at most {TEXT_BYTES_MAX} are read", text.len());
        return errors.stop(Mark::START, "", message);
    }
    let options = options! {
        emit_unresolved_aliases: true,
        emit_comments: false,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    let mut builder = Builder::new(errors);
    for next in Parser::new_from_str_with_options(text, options) {
        match next {
            Ok((event, span)) => builder.accept(event, Mark::of(&span))?,
            Err(error) => {
                let mark = Mark::at(error.marker().line(), error.marker().col());
                return errors.stop(mark, &builder.path(), format!("not valid YAML: {}", error.info()));
            }
        }
    }
    Some(builder.root.unwrap_or(Node { mark: Mark::START, value: Value::Null }))
}

/// A list or map whose end has not come yet.
struct Open {
    mark: Mark,
    anchor: usize,
    body: Body,
}

enum Body {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: BTreeMap<String, Mark>, key: Option<(String, Mark)> },
}

struct Builder<'a> {
    errors: &'a Errors,
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    bytes: usize,
}

impl<'a> Builder<'a> {
    const fn new(errors: &'a Errors) -> Self {
        Self { errors, open: Vec::new(), root: None, documents: 0, anchors: BTreeMap::new(), nodes: 0, bytes: 0 }
    }

    /// Takes one event; `None` stops the reading.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the parser's enum is open; its other events carry no value")]
    fn accept(&mut self, event: Event<'_>, mark: Mark) -> Option<()> {
        if event.tag().is_some() {
            self.errors.add(mark, &self.path(), "YAML tags (`!name`) mean nothing here; remove it");
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return self.errors.stop(
                        mark,
                        "",
                        "a second YAML document (`---`); one file holds one configuration",
                    );
                }
                Some(())
            }
            Event::Scalar(text, style, anchor, _) => {
                let null = style == ScalarStyle::Plain && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                self.charge(Weight { nodes: 1, bytes: text.len(), depth: 1 }, mark)?;
                let value = if null { Value::Null } else { Value::Scalar(text.into_owned()) };
                self.complete(Node { mark, value }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.enter(Open { mark, anchor, body: Body::List(Vec::new()) }),
            Event::MappingStart(_, anchor, _) => {
                let body = Body::Map { entries: Vec::new(), seen: BTreeMap::new(), key: None };
                self.enter(Open { mark, anchor, body })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Some(()) };
                self.charge(Weight { nodes: 1, bytes: 0, depth: 1 }, open.mark)?;
                let value = match open.body {
                    Body::List(items) => Value::List(items),
                    Body::Map { entries, .. } => Value::Map(entries),
                };
                self.complete(Node { mark: open.mark, value }, open.anchor)
            }
            Event::Alias(anchor) => self.alias(anchor, mark),
            Event::UnresolvedAlias(name) => {
                let message = format!("the alias {} has no anchor before it", excerpt(&name));
                self.errors.add(mark, &self.path(), message);
                self.complete(Node { mark, value: Value::Null }, 0)
            }
            _ => Some(()),
        }
    }

    fn enter(&mut self, open: Open) -> Option<()> {
        if self.open.len() >= DEPTH_MAX {
            return self.too_deep(open.mark);
        }
        self.open.push(open);
        Some(())
    }

    fn alias(&mut self, anchor: usize, mark: Mark) -> Option<()> {
        let Some(node) = self.anchors.get(&anchor) else {
            self.errors.add(mark, &self.path(), "the alias stands inside what it refers to");
            return self.complete(Node { mark, value: Value::Null }, 0);
        };
        let weight = node.weight();
        if self.open.len() + weight.depth > DEPTH_MAX {
            return self.too_deep(mark);
        }
        self.charge(weight, mark)?;
        let node = self.anchors.get(&anchor)?.clone();
        self.complete(node, 0)
    }

    /// A value has been read whole: keeps it for aliases, then hands it to what it stands in.
    fn complete(&mut self, node: Node, anchor: usize) -> Option<()> {
        if anchor != 0 {
            self.charge(node.weight(), node.mark)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { body: Body::List(items), .. }) => items.push(node),
            Some(Open { body: Body::Map { key: key @ None, .. }, .. }) => {
                let mark = node.mark;
                *key = match node.value {
                    Value::Scalar(text) => Some((text, mark)),
                    Value::Null => Some((String::new(), mark)),
                    Value::List(_) | Value::Map(_) => {
                        self.errors.add(mark, &self.path(), "a field's name is plain text, not a list or a map");
                        return self.stand_in_key(mark);
                    }
                };
            }
            Some(Open { body: Body::Map { .. }, .. }) => self.push_entry(node),
        }
        Some(())
    }

    /// After a key that is no text: goes on with a name no field has.
    fn stand_in_key(&mut self, mark: Mark) -> Option<()> {
        if let Some(Open { body: Body::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some((String::new(), mark));
        }
        Some(())
    }

    fn push_entry(&mut self, value: Node) {
        let path = self.path();
        let Some(Open { body: Body::Map { entries, seen, key }, .. }) = self.open.last_mut() else { return };
        let Some((key, mark)) = key.take() else { return };
        if let Some(first) = seen.get(&key) {
            self.errors.add(mark, &path, format!("given twice; the first is {first}. Remove one"));
            return;
        }
        seen.insert(key.clone(), mark);
        entries.push(Entry { key, label: None, mark, value });
    }

    /// Counts what is kept; `None` when it is too much.
    fn charge(&mut self, weight: Weight, mark: Mark) -> Option<()> {
        self.nodes += weight.nodes;
        self.bytes += weight.bytes;
        if self.nodes > NODES_MAX || self.bytes > VALUE_BYTES_MAX {
            let message =
                format!("too much: aliases unfolded, more than {NODES_MAX} values or {VALUE_BYTES_MAX} bytes");
            return self.errors.stop(mark, &self.path(), message);
        }
        Some(())
    }

    fn too_deep(&self, mark: Mark) -> Option<()> {
        self.errors.stop(mark, &self.path(), format!("nested more than {DEPTH_MAX} levels deep"))
    }

    /// Where the reading stands, such as `replicas[2].url`.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.body {
                Body::List(items) => path.push_str(&format!("[{}]", items.len())),
                Body::Map { key: Some((key, _)), .. } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.extend(key.chars().take(60));
                }
                Body::Map { key: None, .. } => {}
            }
        }
        path
    }
}
