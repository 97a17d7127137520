//! The KV cache of one simulated engine: prefix blocks shared by all requests, least recently used evicted first, tails
//! before heads, and below it, perhaps, a tier in the host's memory.
//!
//! A node is a segment of prompts of which the first so many tokens are resident: blocks of one segment are used and
//! evicted together, so that a prompt of 100,000 tokens costs a few dozen nodes and not thousands of blocks. Nodes that
//! nobody uses stand in a list in the order in which their blocks are to be evicted: by the time of their last use, and of
//! those that were released together the deepest first, as vLLM's free queue has it.

use super::workload::Segment;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// No node.
const NONE: u32 = u32::MAX;

/// Ids are unique already: spreading them is enough.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// By segment id.
pub(super) type ById<T> = HashMap<u64, T, BuildHasherDefault<IdHasher>>;

#[derive(Clone, Copy, Debug)]
struct Node {
    id: u64,
    /// Tokens in the device's memory, from the segment's first.
    resident: u32,
    /// The host holds the tokens from `resident` up to here, if this is more.
    host_end: u32,
    /// Requests that use it.
    uses: u32,
    /// Neighbours in the device's list and in the host's.
    links: [Links; 2],
}

#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
    is_in: bool,
}

impl Links {
    const OUT: Self = Self { before: NONE, after: NONE, is_in: false };
}

/// First and last of a list.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Device = 0,
    Host = 1,
}

/// How much of a prompt is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Tokens from the first that are in the device's memory.
    pub device: u32,
    /// Tokens after these that are in the host's.
    pub host: u32,
}

/// The cache of one engine. Sizes are tokens.
#[derive(Clone, Debug)]
pub struct KvCache {
    capacity: u64,
    host_capacity: u64,
    block_tokens: u32,
    /// Resident and reserved.
    used: u64,
    /// Resident and used by nobody.
    idle: u64,
    host_used: u64,
    nodes: Vec<Node>,
    spare: Vec<u32>,
    by_id: ById<u32>,
    ends: [Ends; 2],
    evicted: u64,
}

/// The nodes of one prompt, in use from [`KvCache::acquire`] to [`KvCache::release`].
#[derive(Clone, Debug, Default)]
pub struct Path {
    nodes: Vec<u32>,
}

impl KvCache {
    /// An empty cache of `capacity` tokens, with `host_capacity` more in the host's memory.
    #[must_use]
    pub fn new(capacity: u64, host_capacity: u64, block_tokens: u32) -> Self {
        Self {
            capacity,
            host_capacity,
            block_tokens: block_tokens.max(1),
            used: 0,
            idle: 0,
            host_used: 0,
            nodes: Vec::new(),
            spare: Vec::new(),
            by_id: ById::default(),
            ends: [Ends { first: NONE, last: NONE }; 2],
            evicted: 0,
        }
    }

    /// Tokens that requests could still be given, what is evicted for them included.
    #[must_use]
    pub const fn available(&self) -> u64 {
        self.capacity.saturating_sub(self.used) + self.idle
    }

    /// Share of the cache that requests use; what is only kept for later does not count, as in vLLM.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
    pub const fn usage(&self) -> f64 {
        (self.used - self.idle) as f64 / self.capacity as f64
    }

    /// Tokens evicted so far.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// How much of `prompt` could be reused now: whole blocks, and never the last token, which must be computed for its
    /// answer.
    #[must_use]
    pub fn held(&self, prompt: &[Segment]) -> Held {
        let (mut device, mut host, mut total) = (0_u32, 0_u32, 0_u32);
        let (mut on_device, mut goes_on) = (true, true);
        for segment in prompt {
            total += segment.tokens;
            if !goes_on {
                continue;
            }
            let Some(node) = self.by_id.get(&segment.id).map(|place| &self.nodes[*place as usize]) else {
                goes_on = false;
                continue;
            };
            let resident = if on_device { node.resident.min(segment.tokens) } else { 0 };
            device += resident;
            on_device &= resident == segment.tokens;
            // What stands on the device behind a gap, and what the host has, is as good as in the host's memory.
            let kept = node.host_end.max(node.resident).min(segment.tokens);
            host += kept - resident;
            goes_on = kept == segment.tokens;
        }
        let most = total.saturating_sub(1) / self.block_tokens * self.block_tokens;
        let device = (device / self.block_tokens * self.block_tokens).min(most);
        let host = ((device + host) / self.block_tokens * self.block_tokens).min(most) - device;
        Held { device, host: if self.host_capacity > 0 { host } else { 0 } }
    }

    /// Takes the prompt's nodes into use.
    pub fn acquire(&mut self, prompt: &[Segment]) -> Path {
        let mut path = Path { nodes: Vec::with_capacity(prompt.len() + 1) };
        for segment in prompt {
            let place = self.node(segment.id);
            self.take_up(place);
            path.nodes.push(place);
        }
        path
    }

    /// Sets `tokens` aside for requests, evicting what must go. False, and nothing is changed, when there are not enough.
    pub fn reserve(&mut self, tokens: u64) -> bool {
        if self.available() < tokens {
            return false;
        }
        while self.capacity < self.used + tokens {
            let over = self.used + tokens - self.capacity;
            self.evict(over);
        }
        self.used += tokens;
        true
    }

    /// Gives back tokens that were reserved.
    pub const fn unreserve(&mut self, tokens: u64) {
        self.used = self.used.saturating_sub(tokens);
    }

    /// Tokens `from..to` of the prompt have been computed, in memory that was reserved. What another request had computed
    /// meanwhile is held once.
    pub fn fill(&mut self, path: &Path, prompt: &[Segment], from: u32, to: u32) {
        let (mut start, mut kept) = (0_u32, 0_u64);
        for (segment, place) in prompt.iter().zip(&path.nodes) {
            let end = start + segment.tokens;
            if end > from && start < to {
                let (first, last) = (from.max(start) - start, to.min(end) - start);
                let resident = self.nodes[*place as usize].resident;
                if (first..last).contains(&resident) {
                    self.forget_on_host(*place);
                    self.nodes[*place as usize].resident = last;
                    kept += u64::from(last - resident);
                }
            }
            start = end;
        }
        let doubled = u64::from(to.saturating_sub(from)).saturating_sub(kept);
        self.used = self.used.saturating_sub(doubled);
    }

    /// The prompt goes on by `segment`, whose tokens have been computed in memory that was reserved.
    pub fn extend(&mut self, path: &mut Path, segment: Segment) {
        let place = self.node(segment.id);
        self.take_up(place);
        path.nodes.push(place);
        self.forget_on_host(place);
        let node = &mut self.nodes[place as usize];
        let new = segment.tokens.saturating_sub(node.resident);
        node.resident += new;
        self.used -= u64::from(segment.tokens - new);
    }

    /// The request is over: its nodes are kept as long as there is room, and the deepest are the first to go.
    pub fn release(&mut self, path: &mut Path) {
        for place in path.nodes.drain(..).rev() {
            let node = &mut self.nodes[place as usize];
            node.uses -= 1;
            if node.uses > 0 {
                continue;
            }
            if node.resident > 0 {
                self.idle += u64::from(node.resident);
                self.link(Tier::Device, place);
            } else {
                self.drop_if_empty(place);
            }
        }
    }

    fn node(&mut self, id: u64) -> u32 {
        if let Some(place) = self.by_id.get(&id) {
            return *place;
        }
        let node = Node { id, resident: 0, host_end: 0, uses: 0, links: [Links::OUT; 2] };
        let place = match self.spare.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).unwrap_or(NONE)
            }
        };
        self.by_id.insert(id, place);
        place
    }

    fn take_up(&mut self, place: u32) {
        let node = &mut self.nodes[place as usize];
        node.uses += 1;
        if node.links[Tier::Device as usize].is_in {
            self.idle -= u64::from(node.resident);
            self.unlink(Tier::Device, place);
        }
    }

    /// Evicts up to `tokens`, rounded up to a block, from the node whose turn it is.
    fn evict(&mut self, tokens: u64) {
        let place = self.ends[Tier::Device as usize].first;
        let Some(node) = self.nodes.get_mut(place as usize) else { return };
        let blocks = tokens.div_ceil(u64::from(self.block_tokens)) * u64::from(self.block_tokens);
        let taken = u32::try_from(blocks).unwrap_or(u32::MAX).min(node.resident);
        let before = node.resident;
        node.resident -= taken;
        self.used -= u64::from(taken);
        self.idle -= u64::from(taken);
        self.evicted += u64::from(taken);
        if self.host_capacity > 0 {
            node.host_end = node.host_end.max(before);
            self.host_used += u64::from(taken);
            self.relink(Tier::Host, place);
        }
        if self.nodes[place as usize].resident == 0 {
            self.unlink(Tier::Device, place);
        }
        while self.host_used > self.host_capacity {
            self.evict_from_host();
        }
        self.drop_if_empty(place);
    }

    fn evict_from_host(&mut self) {
        let place = self.ends[Tier::Host as usize].first;
        if place != NONE {
            self.forget_on_host(place);
            self.drop_if_empty(place);
        }
    }

    /// The host no longer holds any of the node (or need not: the device does).
    fn forget_on_host(&mut self, place: u32) {
        let node = &mut self.nodes[place as usize];
        if node.links[Tier::Host as usize].is_in {
            self.host_used -= u64::from(node.host_end.saturating_sub(node.resident));
            node.host_end = 0;
            self.unlink(Tier::Host, place);
        }
    }

    fn drop_if_empty(&mut self, place: u32) {
        let node = &self.nodes[place as usize];
        if node.uses == 0 && node.resident == 0 && node.host_end == 0 && self.by_id.remove(&node.id).is_some() {
            self.spare.push(place);
        }
    }

    fn link(&mut self, tier: Tier, place: u32) {
        let tier = tier as usize;
        let last = std::mem::replace(&mut self.ends[tier].last, place);
        self.nodes[place as usize].links[tier] = Links { before: last, after: NONE, is_in: true };
        match self.nodes.get_mut(last as usize) {
            Some(last) => last.links[tier].after = place,
            None => self.ends[tier].first = place,
        }
    }

    fn unlink(&mut self, tier: Tier, place: u32) {
        let tier = tier as usize;
        let Links { before, after, is_in } = std::mem::replace(&mut self.nodes[place as usize].links[tier], Links::OUT);
        if !is_in {
            return;
        }
        match self.nodes.get_mut(before as usize) {
            Some(before) => before.links[tier].after = after,
            None => self.ends[tier].first = after,
        }
        match self.nodes.get_mut(after as usize) {
            Some(after) => after.links[tier].before = before,
            None => self.ends[tier].last = before,
        }
    }

    fn relink(&mut self, tier: Tier, place: u32) {
        self.unlink(tier, place);
        self.link(tier, place);
    }
}

#[cfg(test)]
mod tests;
