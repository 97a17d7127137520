//! Exact knowledge of what engines hold, for the variant `precise`.

use super::super::super::engine::SimEngine;
use super::super::super::workload::Segment;
use super::super::Live;
use super::BLOCK_TOKENS;
use crate::id::ReplicaSlot;
use crate::prefix::index::WarmDepths;

/// Prompts on their way to engines or in prefill there: the gateway has sent them, so it knows of them.
#[derive(Debug, Default)]
pub(super) struct Exact {
    coming: Vec<(u64, ReplicaSlot, Vec<Segment>)>,
}

impl Exact {
    /// A request has been placed at `slot`.
    pub(super) fn sent(&mut self, slot: ReplicaSlot, live: &Live) {
        self.coming.push((live.asked.key, slot, live.prompt.clone()));
    }

    /// A request has had its first token, or is over: its engine holds its prompt, or never will.
    pub(super) fn prefilled(&mut self, live: &Live) {
        self.coming.retain(|(key, ..)| *key != live.asked.key);
    }

    /// Writes how much of `prompt` each engine holds, or is about to.
    pub(super) fn tell(&self, prompt: &[Segment], engines: &[SimEngine], depths: &mut WarmDepths) {
        for (place, engine) in engines.iter().enumerate() {
            let Some(slot) = ReplicaSlot::from_index(place) else { continue };
            let held = engine.held(prompt);
            let here = self.coming.iter().filter(|(_, at, _)| *at == slot);
            let coming = here.map(|(.., other)| common(prompt, other)).max().unwrap_or(0);
            let all = held.device + held.host;
            let on_device = if coming > all { coming } else { held.device };
            depths.set(slot, coming.max(all) / BLOCK_TOKENS, on_device / BLOCK_TOKENS);
        }
    }
}

/// Tokens that two prompts have in common from their start.
fn common(one: &[Segment], other: &[Segment]) -> u32 {
    one.iter().zip(other).take_while(|(one, other)| one.id == other.id).map(|(one, _)| one.tokens).sum()
}
