//! Coding agents' sessions: one a line, `{"session_id", "turns": [[input tokens, output tokens, reused prefix tokens,
//! think seconds], …]}`. A turn's prompt is the first `reused` tokens of an earlier turn's, and new ones after that.
//!
//! The earlier turn is the latest whose prompt, its output included, was as long: nearly always the one before. (In
//! recorded sessions a sub-agent's shorter turns sometimes stand between.)
//!
//! How prompts become few, whole segments: what a turn adds is a *piece*. Every prompt is then a list of pieces, each
//! from its beginning, because a prefix of a list cuts only the last one it takes. The places where a piece is ever cut
//! divide it into segments. So every border between two segments is the end of a prompt or a place where two prompts
//! part: no two segments always stand together.

use std::io::BufRead;

use serde::Deserialize;

use super::super::{Call, Pace, Script, Segment, Workload};
use super::lines::Lines;
use super::{Kept, LineFault, input, json, output, tokens_within};

/// Longest session, turns.
pub(super) const TURNS_MAX: usize = 4096;
/// Longest pause before a turn, seconds.
const THINK_S_MAX: f64 = 1e6;
const EXPECTED: &str = r#"{"session_id": "s1", "turns": [[900, 50, 0, 0.0], [1000, 60, 900, 5.5]]}"#;

#[derive(Deserialize)]
struct Session {
    turns: Vec<(u64, u64, u64, f64)>,
}

/// What a turn adds to a prompt: its new tokens, or an output that a later turn goes on from.
#[derive(Debug)]
struct Piece {
    tokens: u32,
    kind: Kind,
    /// Where it is cut, tokens from its beginning; neither 0 nor its length.
    cuts: Vec<u32>,
    /// The ids of its segments are this and the next ones, once all cuts are known.
    first_id: u64,
}

/// Whether a piece may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// New tokens.
    Input,
    /// An output, which is one segment.
    Output,
}

/// The beginning of a piece in a prompt.
#[derive(Clone, Copy, Debug)]
struct Part {
    piece: usize,
    tokens: u32,
}

#[derive(Debug)]
struct Turn {
    prompt: Vec<Part>,
    input: u32,
    output: u32,
    /// The piece that its output is, if a later turn goes on from it.
    output_piece: Option<usize>,
    think_s: f32,
}

#[derive(Debug, Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn add(&mut self, tokens: u32, kind: Kind) -> Part {
        self.0.push(Piece { tokens, kind, cuts: Vec::new(), first_id: 0 });
        Part { piece: self.0.len() - 1, tokens }
    }

    /// The first `tokens` of a prompt; cuts the piece in which they end, or leaves it out if it is an output.
    fn prefix(&mut self, prompt: &[Part], tokens: u32) -> Vec<Part> {
        let mut taken = Vec::with_capacity(prompt.len() + 1);
        let mut rest = tokens;
        for part in prompt {
            if rest == 0 {
                break;
            }
            let tokens = part.tokens.min(rest);
            rest -= tokens;
            let Some(piece) = self.0.get_mut(part.piece) else { break };
            if tokens < piece.tokens {
                if piece.kind == Kind::Output {
                    break;
                }
                if let Err(place) = piece.cuts.binary_search(&tokens) {
                    piece.cuts.insert(place, tokens);
                }
            }
            taken.push(Part { tokens, ..*part });
        }
        taken
    }

    /// Gives every segment an id.
    fn number(&mut self, ids: &mut u64) {
        for piece in &mut self.0 {
            piece.first_id = *ids;
            *ids += u64::try_from(piece.cuts.len()).unwrap_or_default() + 1;
        }
    }

    /// A prompt's parts as segments.
    fn segments(&self, prompt: &[Part]) -> Vec<Segment> {
        let mut segments = Vec::with_capacity(prompt.len());
        for part in prompt {
            let Some(piece) = self.0.get(part.piece) else { continue };
            let mut from = 0;
            let cuts = piece.cuts.iter().copied().filter(|cut| *cut < part.tokens).chain([part.tokens]);
            for (id, to) in (piece.first_id..).zip(cuts) {
                segments.push(Segment { id, tokens: to - from });
                from = to;
            }
        }
        segments
    }
}

pub(super) fn read(lines: &mut Lines<impl BufRead>, name: String) -> Result<Workload, LineFault> {
    let mut kept = Kept::default();
    let mut scripts = Vec::new();
    let mut ids = 1;
    while let Some(line) = lines.next()? {
        let session: Session = json(line, EXPECTED)?;
        if session.turns.len() > TURNS_MAX {
            return Err(LineFault::Turns(session.turns.len()));
        }
        if session.turns.is_empty() {
            continue;
        }
        let calls = calls(&session, &mut ids, &mut kept)?;
        scripts.push(Script { at_s: 0.0, calls: calls.into_boxed_slice() });
    }
    Ok(Workload { name, pace: Pace::Closed, classes: vec!["all".to_owned()], scripts, hot: None })
}

fn calls(session: &Session, ids: &mut u64, kept: &mut Kept) -> Result<Vec<Call>, LineFault> {
    let mut pieces = Pieces::default();
    let mut turns: Vec<Turn> = Vec::with_capacity(session.turns.len());
    for raw in &session.turns {
        let turn = turn(*raw, &mut turns, &mut pieces)?;
        turns.push(turn);
    }
    pieces.number(ids);
    let mut calls = Vec::with_capacity(turns.len());
    for (place, turn) in turns.iter().enumerate() {
        let prompt = pieces.segments(&turn.prompt);
        kept.add(prompt.len())?;
        let before = place.checked_sub(1).and_then(|before| u32::try_from(before).ok());
        let output_piece = turn.output_piece.and_then(|piece| pieces.0.get(piece));
        calls.push(Call {
            prompt: prompt.into_boxed_slice(),
            output_tokens: turn.output,
            output: output_piece.map_or(0, |piece| piece.first_id),
            after: before.into_iter().collect(),
            think_s: turn.think_s,
            class: 0,
            tenant: 0,
        });
    }
    Ok(calls)
}

fn turn(raw: (u64, u64, u64, f64), before: &mut [Turn], pieces: &mut Pieces) -> Result<Turn, LineFault> {
    let (tokens, generated, reused, think_s) = raw;
    let place = before.len() + 1;
    let (input, output, reused) = (input(tokens)?, output(generated)?, tokens_within(reused)?);
    if reused > input {
        return Err(LineFault::ReusesAll { turn: place, reused, input });
    }
    if !(0.0..=THINK_S_MAX).contains(&think_s) {
        return Err(LineFault::Time(think_s));
    }
    let mut prompt = if reused == 0 {
        Vec::new()
    } else {
        let source = before.iter_mut().rev().find(|turn| turn.input.saturating_add(turn.output) >= reused);
        let source = source.ok_or(LineFault::ReusesMore { turn: place, reused })?;
        reuse(source, reused, pieces)
    };
    let taken: u32 = prompt.iter().map(|part| part.tokens).sum();
    if taken < input {
        prompt.push(pieces.add(input - taken, Kind::Input));
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most a million seconds; a part of a millisecond is lost")]
    let think_s = think_s as f32;
    Ok(Turn { prompt, input, output, output_piece: None, think_s })
}

/// The beginning of a turn's prompt. An output is reused whole or not at all: one that is only begun is new.
fn reuse(source: &mut Turn, reused: u32, pieces: &mut Pieces) -> Vec<Part> {
    let mut prompt = pieces.prefix(&source.prompt, reused);
    if reused == source.input.saturating_add(source.output) {
        let part = match source.output_piece {
            Some(piece) => Part { piece, tokens: source.output },
            None => pieces.add(source.output, Kind::Output),
        };
        source.output_piece = Some(part.piece);
        prompt.push(part);
    }
    prompt
}
