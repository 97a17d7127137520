//! Mooncake's traces (github.com/kvcache-ai/Mooncake, FAST'25): one request a line, `{"timestamp": ms, "input_length",
//! "output_length", "hash_ids"}`. A hash id is of a block of 512 tokens and all blocks before it; the last block of a
//! prompt may be shorter. Each request is a script of its own, at its own time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::BufRead;

use serde::Deserialize;

use super::super::{Pace, Script, Segment, Workload};
use super::lines::Lines;
use super::{Kept, LineFault, input, json, lone, output};

/// Tokens of a block.
pub(super) const BLOCK_TOKENS: u32 = 512;
const EXPECTED: &str = r#"{"timestamp": 0, "input_length": 600, "output_length": 50, "hash_ids": [7, 8]}"#;

#[derive(Deserialize)]
struct Request {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

/// The trace's ids → segments. Ids are numbered anew, so that none is 0.
#[derive(Debug, Default)]
struct Blocks {
    known: HashMap<(u64, u32), Block>,
    made: u64,
}

#[derive(Debug)]
struct Block {
    id: u64,
    parent: u64,
}

impl Blocks {
    /// The segment of a block after the segment `parent` (0 at the beginning). A shorter block with the hash of a longer
    /// one cannot be the same content: it is a segment of its own.
    fn segment(&mut self, hash: u64, tokens: u32, parent: u64) -> Result<Segment, LineFault> {
        let id = match self.known.entry((hash, tokens)) {
            Entry::Occupied(known) if known.get().parent == parent => known.get().id,
            Entry::Occupied(_) => return Err(LineFault::Unchained(hash)),
            Entry::Vacant(free) => {
                self.made += 1;
                free.insert(Block { id: self.made, parent }).id
            }
        };
        Ok(Segment { id, tokens })
    }
}

pub(super) fn read(lines: &mut Lines<impl BufRead>, name: String, block_tokens: u32) -> Result<Workload, LineFault> {
    let mut blocks = Blocks::default();
    let mut kept = Kept::default();
    let mut scripts = Vec::new();
    while let Some(line) = lines.next()? {
        let request: Request = json(line, EXPECTED)?;
        kept.add(request.hash_ids.len())?;
        if !(request.timestamp.is_finite() && request.timestamp >= 0.0) {
            return Err(LineFault::Time(request.timestamp));
        }
        let prompt = prompt(&request, block_tokens, &mut blocks)?;
        let call = lone(prompt, output(request.output_length)?);
        scripts.push(Script { at_s: request.timestamp / 1000.0, calls: Box::new([call]) });
    }
    scripts.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    Ok(Workload { name, pace: Pace::Timed, classes: vec!["all".to_owned()], scripts, hot: None })
}

fn prompt(request: &Request, block_tokens: u32, blocks: &mut Blocks) -> Result<Vec<Segment>, LineFault> {
    let tokens = input(request.input_length)?;
    let expected = usize::try_from(tokens.div_ceil(block_tokens)).unwrap_or(usize::MAX);
    let found = request.hash_ids.len();
    if found != expected {
        return Err(LineFault::Blocks { tokens, block: block_tokens, expected, found });
    }
    let mut prompt: Vec<Segment> = Vec::with_capacity(found);
    let mut rest = tokens;
    for hash in &request.hash_ids {
        let parent = prompt.last().map_or(0, |segment| segment.id);
        prompt.push(blocks.segment(*hash, rest.min(block_tokens), parent)?);
        rest = rest.saturating_sub(block_tokens);
    }
    Ok(prompt)
}
