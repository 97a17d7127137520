//! What the demo's clients say: teams of agents with a long shared system prompt and tools, conversations that grow
//! turn by turn, and some prompts that nothing else shares. Seeded: both gateways get the same sessions.

use std::time::Duration;

use serde_json::{Value, json};

/// Share of sessions that share nothing with others and have one turn.
const ONE_OFF_SHARE: f64 = 0.15;
/// Share of sessions that stream.
const STREAM_SHARE: f64 = 0.85;

/// The sessions, one after the other.
#[derive(Debug)]
pub(super) struct Traffic {
    random: fastrand::Rng,
    groups: Vec<Group>,
    mean_gap_s: f64,
}

#[derive(Debug)]
struct Group {
    system: String,
    tools: Value,
}

/// One conversation, from the client's side.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Session {
    /// Wait after the session before it.
    pub(super) gap: Duration,
    pub(super) is_stream: bool,
    pub(super) turns: Vec<Turn>,
    tools: Option<Value>,
    messages: Vec<Value>,
}

/// One message of the user.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) think: Duration,
    pub(super) max_tokens: u32,
    text: String,
}

impl Traffic {
    /// `groups` teams; sessions start at `sessions_per_s` on average, at random.
    pub(super) fn new(seed: u64, groups: usize, sessions_per_s: f64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let groups = (0..groups)
            .map(|number| Group {
                system: format!("You are agent {number}. {}", words(&mut random, 900)),
                tools: tools(&mut random),
            })
            .collect();
        Self { random, groups, mean_gap_s: 1.0 / sessions_per_s.max(1e-3) }
    }

    /// The next session.
    pub(super) fn session(&mut self) -> Session {
        let gap = -self.mean_gap_s * (1.0 - self.random.f64()).ln();
        let is_stream = self.random.f64() < STREAM_SHARE;
        let random = &mut self.random;
        let (tools, messages, turns) = if random.f64() < ONE_OFF_SHARE || self.groups.is_empty() {
            let length = random.usize(100..600);
            (None, Vec::new(), vec![turn(random, length)])
        } else {
            let group = self.groups.get(random.usize(..self.groups.len()));
            let count = random.usize(2..=6);
            let turns = (0..count).map(|_| turn(random, 45)).collect();
            let messages = group.map(|group| json!({"role": "system", "content": group.system}));
            (group.map(|group| group.tools.clone()), messages.into_iter().collect(), turns)
        };
        Session { gap: Duration::from_secs_f64(gap.clamp(0.0, 60.0)), is_stream, turns, tools, messages }
    }
}

impl Session {
    /// The body of the next request, which says `turn`.
    pub(super) fn say(&mut self, turn: &Turn, model: &str) -> String {
        self.messages.push(json!({"role": "user", "content": turn.text}));
        let mut body = json!({"model": model, "max_tokens": turn.max_tokens, "messages": self.messages});
        if let Some(fields) = body.as_object_mut() {
            if let Some(tools) = &self.tools {
                fields.insert("tools".to_owned(), tools.clone());
            }
            if self.is_stream {
                fields.insert("stream".to_owned(), json!(true));
            }
        }
        body.to_string()
    }

    /// What the engine answered.
    pub(super) fn hear(&mut self, answer: &str) {
        self.messages.push(json!({"role": "assistant", "content": answer}));
    }
}

fn turn(random: &mut fastrand::Rng, length: usize) -> Turn {
    Turn {
        think: Duration::from_millis(random.u64(100..1_200)),
        max_tokens: random.u32(12..40),
        text: words(random, length),
    }
}

fn tools(random: &mut fastrand::Rng) -> Value {
    let tools: Vec<Value> = (0..4)
        .map(|number| {
            json!({"type": "function", "function": {
                "name": format!("tool_{number}"),
                "description": words(random, 40),
                "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
            }})
        })
        .collect();
    Value::Array(tools)
}

/// `count` words of about six letters.
fn words(random: &mut fastrand::Rng, count: usize) -> String {
    let mut text = String::with_capacity(count * 7);
    for _ in 0..count {
        for _ in 0..random.usize(4..=8) {
            text.push(random.lowercase());
        }
        text.push(' ');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_the_same_sessions() {
        let take = || {
            let mut traffic = Traffic::new(7, 4, 10.0);
            (0..50).map(|_| traffic.session()).collect::<Vec<_>>()
        };
        let sessions = take();
        assert_eq!(sessions, take());
        let gaps: f64 = sessions.iter().map(|session| session.gap.as_secs_f64()).sum();
        assert!((2.0..10.0).contains(&gaps), "{gaps}");
        assert!(sessions.iter().any(|session| session.tools.is_none()));
        assert!(sessions.iter().any(|session| !session.is_stream));
    }

    #[test]
    fn turns_grow_on_what_was_said() {
        let mut traffic = Traffic::new(1, 1, 1.0);
        let mut session = std::iter::repeat_with(|| traffic.session()).find(|s| s.turns.len() > 1).unwrap();
        let turns = session.turns.clone();
        let first: Value = serde_json::from_str(&session.say(&turns[0], "m")).unwrap();
        session.hear("yes");
        let second: Value = serde_json::from_str(&session.say(&turns[1], "m")).unwrap();
        let (first, second) = (first["messages"].as_array().unwrap(), second["messages"].as_array().unwrap());
        assert_eq!(second.len(), first.len() + 2);
        assert_eq!(second[..first.len()], first[..]);
    }
}
