//! One pass over a page: what each rule found, and what that comes to.

use super::dialect::{Dialect, Figure, Fold, InfoNames, Rule};
use super::text::{self, Kind, Labels, Line};
use super::{Engine, Reading};

/// Most data-parallel ranks on one page; further ones are left out.
const RANKS_MAX: usize = 1024;
/// Most models, and most adapters of a kind, that are taken from a page.
const NAMES_MAX: usize = 256;
/// Longest name that is taken.
const NAME_BYTES_MAX: usize = 256;
/// Start times before this are not times of the Unix clock: 2001-09-09.
const STARTED_MIN_S: f64 = 1e9;
/// As are those after this: the year 2286.
const STARTED_MAX_S: f64 = 1e10;

/// What the series of one rule came to.
#[derive(Clone, Debug, Default)]
struct Series {
    seen: u32,
    sum: f64,
    least: f64,
    greatest: f64,
    /// For [`Fold::Ranks`]: the greatest of each.
    ranks: Vec<(u32, f64)>,
}

impl Series {
    fn clear(&mut self) {
        let mut ranks = std::mem::take(&mut self.ranks);
        ranks.clear();
        *self = Self { ranks, ..Self::default() };
    }

    fn add(&mut self, value: f64, fold: Fold, labels: Labels<'_>) {
        self.least = if self.seen == 0 { value } else { self.least.min(value) };
        self.greatest = if self.seen == 0 { value } else { self.greatest.max(value) };
        self.sum += value;
        self.seen = self.seen.saturating_add(1);
        if fold == Fold::Ranks {
            let rank = labels.get("dp_rank").and_then(|rank| rank.parse().ok()).unwrap_or(0);
            let has_room = self.ranks.len() < RANKS_MAX;
            match self.ranks.iter_mut().find(|(known, _)| *known == rank) {
                Some((_, greatest)) => *greatest = greatest.max(value),
                None if has_room => self.ranks.push((rank, value)),
                None => {}
            }
        }
    }

    fn value(&self, fold: Fold) -> Option<f64> {
        (self.seen > 0).then(|| match fold {
            Fold::Sum => self.sum,
            Fold::Ranks => self.ranks.iter().map(|(_, value)| value).sum(),
            Fold::Mean => self.sum / f64::from(self.seen),
            Fold::Least => self.least,
            Fold::Greatest => self.greatest,
        })
    }
}

/// Texts that keep their memory from page to page.
#[derive(Clone, Debug, Default)]
struct Names {
    texts: Vec<String>,
    used: usize,
}

impl Names {
    fn add(&mut self, name: &str) {
        let known = self.texts.iter().take(self.used).any(|text| text == name);
        if known || name.is_empty() || name.len() > NAME_BYTES_MAX || self.used == NAMES_MAX {
            return;
        }
        match self.texts.get_mut(self.used) {
            Some(text) => {
                text.clear();
                text.push_str(name);
            }
            None => self.texts.push(name.to_owned()),
        }
        self.used += 1;
    }

    /// Makes `list` these names.
    fn copy_to(&self, list: &mut Vec<String>) {
        let names = self.texts.iter().take(self.used);
        if !names.clone().eq(list.iter()) {
            *list = names.cloned().collect();
        }
    }
}

/// What labels of settings said, summed up over the engines of the page.
#[derive(Clone, Copy, Debug, Default)]
struct Cache {
    blocks: Option<f64>,
    block_tokens: Option<f64>,
    tokens: Option<f64>,
}

/// All that was found on one page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    series: Vec<Series>,
    values: [Option<f64>; Figure::COUNT],
    cache: Cache,
    models: Names,
    running: Names,
    waiting: Names,
    /// When the adapters were last said: series of other times stay on the page.
    adapters_at: Option<f64>,
    broken: u32,
}

impl Tally {
    /// Goes over `page`; whether any name on it is the engine's own.
    pub(crate) fn take(&mut self, page: &[u8], dialect: &Dialect) -> bool {
        self.series.resize_with(dialect.rules.len(), Series::default);
        self.series.iter_mut().for_each(Series::clear);
        (self.cache, self.adapters_at, self.broken) = (Cache::default(), None, 0);
        (self.models.used, self.running.used, self.waiting.used) = (0, 0, 0);
        let mut has_own_names = false;
        for kind in text::lines(page) {
            match kind {
                Kind::Blank => {}
                Kind::Broken => self.broken = self.broken.saturating_add(1),
                Kind::Sample(line) => {
                    has_own_names |= !dialect.prefix.is_empty() && line.name.starts_with(dialect.prefix.as_bytes());
                    if !self.sample(line, dialect) {
                        self.broken = self.broken.saturating_add(1);
                    }
                }
            }
        }
        self.settle(&dialect.rules);
        has_own_names
    }

    /// Takes a sample if a rule wants it; false when it is broken.
    fn sample(&mut self, line: Line<'_>, dialect: &Dialect) -> bool {
        let mut parts = None;
        for (rule, series) in dialect.rules.iter().zip(&mut self.series) {
            if rule.name.as_bytes() != line.name {
                continue;
            }
            if parts.is_none() {
                parts = line.parts();
            }
            let Some((labels, value)) = parts else { return false };
            if !value.is_finite() || value < 0.0 {
                continue; // NaN is how some say that there is no value yet
            }
            if rule.label.as_ref().is_none_or(|(key, wanted)| labels.has(key, wanted)) {
                series.add(value, rule.fold, labels);
                if rule.figure == Figure::Running
                    && let Some(model) = dialect.info.model.and_then(|label| labels.get(label))
                {
                    self.models.add(&model);
                }
            }
        }
        self.info(line, &dialect.info)
    }

    /// Takes a sample that says things by its labels.
    fn info(&mut self, line: Line<'_>, info: &InfoNames) -> bool {
        if let Some((name, wanted)) = info.cache
            && line.name == name.as_bytes()
        {
            let Some((labels, _)) = line.parts() else { return false };
            let [blocks, block_tokens, tokens] = wanted.map(|label| {
                let value = labels.get(label?)?.parse::<f64>().ok()?;
                (value.is_finite() && value >= 0.0).then_some(value)
            });
            let plus = |sum: Option<f64>, more: Option<f64>| more.map_or(sum, |more| Some(sum.unwrap_or(0.0) + more));
            self.cache.blocks = plus(self.cache.blocks, blocks);
            self.cache.tokens = plus(self.cache.tokens, tokens);
            self.cache.block_tokens = block_tokens.or(self.cache.block_tokens);
        }
        if let Some((name, [running, waiting])) = info.adapters
            && line.name == name.as_bytes()
        {
            let Some((labels, at)) = line.parts() else { return false };
            if at.is_finite() && self.adapters_at.is_none_or(|last| at >= last) {
                self.adapters_at = Some(at);
                for (list, label) in [(&mut self.running, running), (&mut self.waiting, waiting)] {
                    list.used = 0;
                    labels.get(label).unwrap_or_default().split(',').for_each(|name| list.add(name.trim()));
                }
            }
        }
        true
    }

    /// For each figure, what the first rule that found something came to.
    fn settle(&mut self, rules: &[Rule]) {
        self.values = [None; Figure::COUNT];
        for (rule, series) in rules.iter().zip(&self.series) {
            if let Some(cell) = self.values.get_mut(rule.figure as usize)
                && cell.is_none()
            {
                *cell = series.value(rule.fold);
            }
        }
    }

    /// Whether the page told `figure`.
    pub(crate) fn has(&self, figure: Figure) -> bool {
        self.get(figure).is_some()
    }

    fn get(&self, figure: Figure) -> Option<f64> {
        self.values.get(figure as usize).copied().flatten()
    }

    /// Writes what was found into `reading`.
    pub(crate) fn fill(&self, engine: Engine, reading: &mut Reading) {
        let running = self.get(Figure::Running).unwrap_or(0.0);
        let active = self.get(Figure::Active).unwrap_or(running);
        reading.engine = engine;
        reading.is_awake = self.get(Figure::Awake).is_none_or(|awake| awake > 0.0);
        reading.running = count(running);
        reading.waiting = count(self.get(Figure::Waiting).unwrap_or(active - running));
        reading.slots = self.get(Figure::Slots).map(count).filter(|slots| *slots > 0);
        reading.prefill_tokens = self.get(Figure::PrefillTokens).map(count);
        self.fill_cache(reading);
        let started = self.get(Figure::Started).filter(|at| (STARTED_MIN_S..STARTED_MAX_S).contains(at));
        reading.started_unix_us = started.map(|seconds| counter(seconds * 1e6));
        self.models.copy_to(&mut reading.models);
        for (names, list) in
            [(&self.running, &mut reading.adapters_loaded), (&self.waiting, &mut reading.adapters_waiting)]
        {
            match self.adapters_at {
                Some(_) => names.copy_to(list.get_or_insert_default()),
                None => *list = None,
            }
        }
        reading.lines_broken = self.broken;
    }

    fn fill_cache(&self, reading: &mut Reading) {
        let positive = |value: &f64| *value > 0.0;
        let block_tokens = self.get(Figure::KvBlockTokens).or(self.cache.block_tokens).filter(positive);
        let blocks = self.get(Figure::KvBlocks).or(self.cache.blocks).filter(positive);
        let tokens = self.get(Figure::KvTokens).or(self.cache.tokens).filter(positive);
        // Where only tokens are told, each is a block of its own: SGLang's pages have one token unless it is told
        // otherwise, and then it tells `cache_config_info` too.
        let blocks = blocks.or_else(|| tokens.map(|tokens| (tokens / block_tokens.unwrap_or(1.0)).floor()));
        let block_tokens = block_tokens.or_else(|| tokens.zip(blocks).map(|(tokens, blocks)| tokens / blocks));
        reading.kv_blocks = blocks.map(count);
        reading.kv_block_tokens = block_tokens.map(count);
        let used = self.get(Figure::KvBlocksUsed).zip(blocks).map(|(used, all)| used / all);
        reading.kv_usage = self.get(Figure::KvUsage).or(used).map(share);
        let size = block_tokens.unwrap_or(1.0);
        let evicted = self.get(Figure::BlocksEvicted).or_else(|| Some(self.get(Figure::TokensEvicted)? / size));
        reading.blocks_evicted = evicted.map(counter);
        let (queried, hit) = self.prefix_tokens(block_tokens);
        reading.prefix_tokens_queried = queried.map(counter);
        reading.prefix_tokens_hit = hit.map(counter);
    }

    /// Prompt tokens looked up and found, from whichever counters the engine has.
    fn prefix_tokens(&self, block_tokens: Option<f64>) -> (Option<f64>, Option<f64>) {
        let hit = self.get(Figure::Hit);
        let missed = self.get(Figure::Missed);
        match (self.get(Figure::Queried), hit, missed) {
            (Some(queried), Some(hit), _) => (Some(queried), Some(hit)),
            (None, Some(hit), Some(missed)) => (Some(hit + missed), Some(hit)),
            // Prompts without hits say nothing of the cache.
            (_, None, _) | (None, Some(_), None) => {
                let size = block_tokens.zip(self.get(Figure::BlocksHit)).zip(self.get(Figure::BlocksMissed));
                match size {
                    Some(((size, hit), missed)) => (Some((hit + missed) * size), Some(hit * size)),
                    None => (None, hit),
                }
            }
        }
    }
}

/// A count, rounded and within bounds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts from floats saturate")]
fn count(value: f64) -> u32 {
    value.round() as u32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts from floats saturate")]
fn counter(value: f64) -> u64 {
    value.round() as u64
}

#[expect(clippy::cast_possible_truncation, reason = "a share of 1 needs no more digits")]
fn share(value: f64) -> f32 {
    value.clamp(0.0, 1.0) as f32
}
