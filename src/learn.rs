//! What live traffic teaches: how long a replica takes for a prompt token and an output token, how long requests stay,
//! and how many prompt bytes make a token of a model.
//!
//! Each answer is one sample of how long prompt and output tokens take, fitted by `fit.rs`; that is what prices are made
//! of. Each streamed answer is also one of how long the first token takes under a load, and each token after it, which
//! `latency.rs` fits, with what surrounds the fit: that is what predictions are made of (`predicted.rs`).
//!
//! A replica is priced at its pool's rates until its own differ clearly: equal replicas then tie exactly, and ties are
//! broken at random.

mod drift;
mod features;
mod fit;
mod latency;
mod predicted;
mod quantile;
mod recursive;

pub use self::features::{Band, Features, steps};
pub use self::latency::{Accuracy, Coefficients};
pub use self::predicted::{Prediction, Timing};

use self::fit::Fit;
use self::latency::{Latency, LatencyCell};
use crate::config::PolicyConfig;
use crate::id::ReplicaSlot;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Samples before a fit is believed.
const SAMPLES_TO_TRUST: u32 = 8;
/// A replica within this ratio of its pool is priced as its pool is.
const SAME_WITHIN: f32 = 1.5;
/// Samples before a replica may be priced apart from its pool.
const SAMPLES_TO_DIFFER: u32 = 64;
/// Share of an answer in the mean time that requests stay, and in that of answers.
const SERVICE_STEP: f32 = 0.1;
const ANSWER_STEP: f32 = 0.01;
/// Share of an answer in the mean of what is found beyond whole blocks.
const TAIL_STEP: f32 = 0.02;
/// Tokens that are no more than the end of a block.
const TAIL_MAX: f32 = 256.0;
/// What one answer took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Uncached prompt tokens ahead of the first output token: its own and those already waiting there.
    pub tokens_ahead: f64,
    /// Output tokens within `seconds`: 1 for a time to first token.
    pub output_tokens: f64,
    /// From the forwarded request to the first token (stream) or to the whole answer.
    pub seconds: f64,
}

/// What a second of a replica's time buys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Seconds before anything else.
    pub base_s: f32,
    /// Seconds for each uncached prompt token.
    pub prefill_s_per_token: f32,
    /// Seconds for each output token.
    pub decode_s_per_token: f32,
}

impl Rates {
    /// What is believed of a replica before it has answered.
    #[must_use]
    pub const fn prior(policy: &PolicyConfig) -> Self {
        let prefill_s_per_token = narrow(1.0 / policy.prefill_tokens_per_s.max(1.0));
        Self { base_s: 0.0, prefill_s_per_token, decode_s_per_token: 0.01 }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "prices need no more than f32's 7 digits")]
const fn narrow(value: f64) -> f32 {
    value as f32
}

#[derive(Debug)]
struct Cell {
    fit: Mutex<Fit>,
    base_s: AtomicU32,
    prefill_s_per_token: AtomicU32,
    decode_s_per_token: AtomicU32,
    service_s: AtomicU32,
    /// Mean seconds of an answer after its first token (the bits of an `f32`).
    answer_s: AtomicU32,
    /// Mean of the tokens found beyond the index's last whole block, plus one (the bits of an `f32`; zero: none yet).
    tail: AtomicU32,
    samples: AtomicU32,
    latency: LatencyCell,
    /// When the last answer was learned from, nanoseconds.
    learned_at: AtomicU64,
    /// It is predicted by its own latencies and not by its pool's.
    is_apart: AtomicBool,
    /// Mean error of what its own latencies and its pool's expected (the bits of `f32`s).
    errors: [AtomicU32; 2],
}

impl Cell {
    fn new(prior: Rates) -> Self {
        let cell = Self {
            fit: Mutex::new(Fit::new(prior)),
            base_s: AtomicU32::new(0),
            prefill_s_per_token: AtomicU32::new(0),
            decode_s_per_token: AtomicU32::new(0),
            service_s: AtomicU32::new(0),
            answer_s: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            samples: AtomicU32::new(0),
            latency: LatencyCell::new(prior),
            learned_at: AtomicU64::new(0),
            is_apart: AtomicBool::new(false),
            errors: [AtomicU32::new(0), AtomicU32::new(0)],
        };
        cell.publish(prior, 0);
        cell
    }

    fn publish(&self, rates: Rates, samples: u32) {
        self.base_s.store(rates.base_s.to_bits(), Relaxed);
        self.prefill_s_per_token.store(rates.prefill_s_per_token.to_bits(), Relaxed);
        self.decode_s_per_token.store(rates.decode_s_per_token.to_bits(), Relaxed);
        self.samples.store(samples, Relaxed);
    }

    fn rates(&self) -> Rates {
        Rates {
            base_s: f32::from_bits(self.base_s.load(Relaxed)),
            prefill_s_per_token: f32::from_bits(self.prefill_s_per_token.load(Relaxed)),
            decode_s_per_token: f32::from_bits(self.decode_s_per_token.load(Relaxed)),
        }
    }

    /// A shard that finds the fit busy drops its sample: there are more.
    fn learn(&self, sample: Sample) {
        if let Some(mut fit) = self.fit.try_lock() {
            fit.learn(sample);
            self.publish(fit.rates(), fit.samples());
        }
    }

    fn reset(&self, prior: Rates) {
        *self.fit.lock() = Fit::new(prior);
        self.publish(prior, 0);
        self.service_s.store(0, Relaxed);
        self.answer_s.store(0, Relaxed);
        self.tail.store(0, Relaxed);
        self.latency.reset(Latency::new(prior));
        self.is_apart.store(false, Relaxed);
        self.errors.iter().for_each(|error| error.store(0, Relaxed));
    }
}

/// Learned rates by replica and by pool; shared by all shards.
#[derive(Debug)]
pub struct LearnedRates {
    replicas: Box<[Cell]>,
    /// As many as replicas: each is counted to one pool.
    pools: Box<[Cell]>,
    /// Which of the pools a replica is counted to.
    pool_of: Box<[AtomicU32]>,
    /// Whose each of the pools is; no request takes this lock.
    names: Mutex<Vec<Option<String>>>,
    /// Configured prefill rates (seconds a token), which are not learned; zero where there is none.
    fixed: Box<[AtomicU32]>,
    prior: Rates,
}

/// What is to be known of a replica before anything is learned of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member<'m> {
    /// Which.
    pub slot: ReplicaSlot,
    /// The model whose replicas it is priced like.
    pub pool: &'m str,
    /// Its configured prefill rate, which is not learned.
    pub prefill_tokens_per_s: Option<f64>,
}

impl LearnedRates {
    /// Columns of `slots_max` cells that know nothing but `prior`.
    #[must_use]
    pub fn new(slots_max: usize, prior: Rates) -> Self {
        let cells = || (0..slots_max).map(|_| Cell::new(prior)).collect();
        let zeros = || (0..slots_max).map(|_| AtomicU32::new(0)).collect();
        Self {
            replicas: cells(),
            pools: cells(),
            pool_of: zeros(),
            names: Mutex::new(vec![None; slots_max]),
            fixed: zeros(),
            prior,
        }
    }

    /// Starts over for a replica that is new at `slot`.
    pub fn reset(&self, slot: ReplicaSlot) {
        if let Some(cell) = self.replicas.get(slot.index()) {
            cell.reset(self.prior);
        }
    }

    /// Takes up who is in which pool; `members` are all replicas there are. What was learned stays: of replicas as
    /// long as they are not [`Self::reset`], of a pool as long as it has any.
    pub fn assign(&self, members: &[Member<'_>]) {
        let mut names = self.names.lock();
        let wanted: HashSet<&str> = members.iter().map(|member| member.pool).collect();
        for name in names.iter_mut() {
            name.take_if(|name| !wanted.contains(name.as_str()));
        }
        let mut places: HashMap<String, usize> =
            names.iter().enumerate().filter_map(|(place, name)| Some((name.clone()?, place))).collect();
        let mut free = 0;
        for member in members {
            let place = match places.get(member.pool) {
                Some(place) => *place,
                None => {
                    while names.get(free).is_some_and(Option::is_some) {
                        free += 1;
                    }
                    let (Some(name), Some(cell)) = (names.get_mut(free), self.pools.get(free)) else { continue };
                    cell.reset(self.prior);
                    *name = Some(member.pool.to_owned());
                    places.insert(member.pool.to_owned(), free);
                    free
                }
            };
            let slot = member.slot.index();
            if let (Some(pool), Some(fixed)) = (self.pool_of.get(slot), self.fixed.get(slot)) {
                pool.store(u32::try_from(place).unwrap_or(0), Relaxed);
                let rate = member.prefill_tokens_per_s.map_or(0.0, |rate| narrow(1.0 / rate.max(1.0)));
                fixed.store(rate.to_bits(), Relaxed);
            }
        }
    }

    fn pool(&self, slot: ReplicaSlot) -> Option<&Cell> {
        self.pools.get(self.pool_of.get(slot.index())?.load(Relaxed) as usize)
    }

    /// What `slot` is priced at: its own rates where they are known and differ, else its pool's, else the prior.
    #[inline]
    #[must_use]
    pub fn rates(&self, slot: ReplicaSlot) -> Rates {
        let known = self.pool(slot).filter(|pool| pool.samples.load(Relaxed) >= SAMPLES_TO_TRUST);
        let mut rates = known.map_or(self.prior, Cell::rates);
        let Some(cell) = self.replicas.get(slot.index()) else { return rates };
        if cell.samples.load(Relaxed) >= SAMPLES_TO_DIFFER {
            let own = cell.rates();
            let ratio = own.prefill_s_per_token / rates.prefill_s_per_token;
            if !(1.0 / SAME_WITHIN..=SAME_WITHIN).contains(&ratio) {
                rates = own;
            }
        }
        let fixed = self.fixed.get(slot.index()).map_or(0.0, |fixed| f32::from_bits(fixed.load(Relaxed)));
        if fixed > 0.0 {
            rates.prefill_s_per_token = fixed;
        }
        rates
    }

    /// Mean seconds a request stays at `slot`; zero until one has ended there.
    #[inline]
    #[must_use]
    pub fn service_s(&self, slot: ReplicaSlot) -> f32 {
        self.replicas.get(slot.index()).map_or(0.0, |cell| f32::from_bits(cell.service_s.load(Relaxed)))
    }

    /// Mean seconds of an answer after its first token, of the replicas that `slot` is priced like; zero until there was
    /// one.
    #[inline]
    #[must_use]
    pub fn answer_s(&self, slot: ReplicaSlot) -> f32 {
        self.pool(slot).map_or(0.0, |pool| f32::from_bits(pool.answer_s.load(Relaxed)))
    }

    /// Tokens that replicas like `slot` find of a prompt beyond the last whole block that the index knows of, in the mean;
    /// `None` until that is known.
    #[inline]
    #[must_use]
    pub fn tail_tokens(&self, slot: ReplicaSlot) -> Option<f32> {
        let tail = self.pool(slot).map_or(0.0, |pool| f32::from_bits(pool.tail.load(Relaxed)));
        (tail > 0.0).then_some(tail - 1.0)
    }

    /// Samples behind the rates of `slot`.
    #[must_use]
    pub fn samples(&self, slot: ReplicaSlot) -> u32 {
        self.replicas.get(slot.index()).map_or(0, |cell| cell.samples.load(Relaxed))
    }

    /// True once the price of `slot` rests on answers, its own or its pool's.
    #[must_use]
    pub fn is_learned(&self, slot: ReplicaSlot) -> bool {
        let pool = self.pool(slot).map_or(0, |pool| pool.samples.load(Relaxed));
        pool.max(self.samples(slot)) >= SAMPLES_TO_TRUST
    }

    /// Learns from one answer.
    pub fn learn(&self, slot: ReplicaSlot, sample: Sample) {
        if let Some(cell) = self.replicas.get(slot.index()) {
            cell.learn(sample);
        }
        if let Some(pool) = self.pool(slot) {
            pool.learn(sample);
        }
    }

    /// Learns how long a request stayed.
    pub fn learn_service(&self, slot: ReplicaSlot, seconds: f64) {
        if let Some(cell) = self.replicas.get(slot.index()) {
            follow(&cell.service_s, seconds, SERVICE_STEP);
        }
    }
}

/// Moves a mean by `step` of its distance to `sample`. Two shards at once may lose one of two samples.
fn follow(mean: &AtomicU32, sample: f64, step: f32) {
    let before = f32::from_bits(mean.load(Relaxed));
    let sample = narrow(sample.clamp(0.0, 3600.0));
    let next = if before == 0.0 { sample } else { before + step * (sample - before) };
    mean.store(next.to_bits(), Relaxed);
}

/// Prompt bytes to a token, learned for one model from what engines count.
#[derive(Debug)]
pub struct TokenRatio {
    bytes_per_token: AtomicU64,
    samples: AtomicU32,
}

/// Before the first answer: about what English text and code have.
const BYTES_PER_TOKEN_PRIOR: f64 = 4.0;

impl Default for TokenRatio {
    fn default() -> Self {
        Self { bytes_per_token: AtomicU64::new(BYTES_PER_TOKEN_PRIOR.to_bits()), samples: AtomicU32::new(0) }
    }
}

impl TokenRatio {
    /// Prompt bytes to a token.
    #[inline]
    #[must_use]
    pub fn bytes_per_token(&self) -> f64 {
        f64::from_bits(self.bytes_per_token.load(Relaxed))
    }

    /// Learns from a prompt of `bytes` that the engine counted as `tokens`. Short prompts say little, for templates add
    /// tokens of their own: they weigh less.
    pub fn learn(&self, bytes: u64, tokens: u64) {
        if bytes == 0 || tokens == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "bodies are far below 2^52 bytes")]
        let (bytes, tokens) = (bytes as f64, tokens as f64);
        let ratio = (bytes / tokens).clamp(0.1, 64.0);
        let seen = self.samples.fetch_add(1, Relaxed);
        // A mean at first, then the last fifty or so.
        let weight = (1.0 / f64::from(seen.saturating_add(1))).max(0.02) * (bytes / 2048.0).min(1.0);
        let before = self.bytes_per_token();
        self.bytes_per_token.store((before + weight * (ratio - before)).to_bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIOR: Rates = Rates { base_s: 0.0, prefill_s_per_token: 1.25e-4, decode_s_per_token: 0.0 };

    fn train(rates: &LearnedRates, slot: ReplicaSlot, prefill: f64, decode: f64, rng: &mut fastrand::Rng) {
        for _ in 0..300 {
            let (tokens_ahead, output_tokens) = (rng.f64() * 8000.0, 1.0 + rng.f64() * 200.0);
            let noise = 1.0 + 0.05 * (rng.f64() - 0.5);
            let seconds = (0.02 + prefill * tokens_ahead + decode * output_tokens) * noise;
            rates.learn(slot, Sample { tokens_ahead, output_tokens, seconds });
        }
    }

    fn near(value: f32, wanted: f64) -> bool {
        (f64::from(value) / wanted - 1.0).abs() < 0.1
    }

    #[test]
    fn rates_are_found_and_followed() {
        let rates = LearnedRates::new(2, PRIOR);
        let slot = ReplicaSlot(0);
        let mut rng = fastrand::Rng::with_seed(7);
        assert_eq!(rates.rates(slot), PRIOR);
        train(&rates, slot, 2e-5, 0.01, &mut rng);
        let learned = rates.rates(slot);
        assert!(near(learned.prefill_s_per_token, 2e-5) && near(learned.decode_s_per_token, 0.01), "{learned:?}");
        for _ in 0..4 {
            train(&rates, slot, 4e-5, 0.01, &mut rng);
        }
        assert!(near(rates.rates(slot).prefill_s_per_token, 4e-5), "{:?}", rates.rates(slot));
    }

    #[test]
    fn an_outlier_moves_little() {
        let rates = LearnedRates::new(1, PRIOR);
        let slot = ReplicaSlot(0);
        train(&rates, slot, 2e-5, 0.01, &mut fastrand::Rng::with_seed(1));
        rates.learn(slot, Sample { tokens_ahead: 4000.0, output_tokens: 1.0, seconds: 600.0 });
        rates.learn(slot, Sample { tokens_ahead: f64::NAN, output_tokens: 1.0, seconds: 1.0 });
        assert!((f64::from(rates.rates(slot).prefill_s_per_token) / 2e-5 - 1.0).abs() < 0.5);
    }

    #[test]
    fn like_replicas_share_a_price_and_unlike_ones_do_not() {
        let rates = LearnedRates::new(3, PRIOR);
        let mut rng = fastrand::Rng::with_seed(3);
        let [a, b, slow] = [ReplicaSlot(0), ReplicaSlot(1), ReplicaSlot(2)];
        for _ in 0..5 {
            train(&rates, slow, 9e-5, 0.01, &mut rng);
        }
        for _ in 0..5 {
            train(&rates, a, 2.0e-5, 0.01, &mut rng);
            train(&rates, b, 2.1e-5, 0.01, &mut rng);
        }
        assert_eq!(rates.rates(a), rates.rates(b));
        assert!(rates.rates(slow).prefill_s_per_token > 3.0 * rates.rates(a).prefill_s_per_token);
    }

    fn member(slot: u16, pool: &str) -> Member<'_> {
        Member { slot: ReplicaSlot(slot), pool, prefill_tokens_per_s: None }
    }

    #[test]
    fn pools_of_unlike_models_are_priced_apart_and_each_alike() {
        let rates = LearnedRates::new(5, PRIOR);
        let mut members = [member(0, "8b"), member(1, "8b"), member(2, "70b"), member(3, "70b")];
        rates.assign(&members);
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..5 {
            for slot in 0..4 {
                let (prefill, decode) = if slot < 2 { (2e-5, 0.01) } else { (2e-4, 0.04) };
                train(&rates, ReplicaSlot(slot), prefill, decode, &mut rng);
            }
        }
        let of = |slot| rates.rates(ReplicaSlot(slot));
        assert_eq!(of(0), of(1));
        assert_eq!(of(2), of(3));
        assert!(near(of(0).prefill_s_per_token, 2e-5) && near(of(2).prefill_s_per_token, 2e-4));
        // A newcomer is priced as its pool is; what a pool learned stays while others come and go.
        let before = (of(0), of(2));
        members.reverse();
        rates.assign(&[&members[..], &[member(4, "70b")]].concat());
        assert_eq!((of(0), of(2)), before);
        assert_eq!(of(4), of(2));
        rates.assign(&members[2..]);
        rates.reset(ReplicaSlot(4));
        rates.assign(&[&members[..], &[member(4, "new")]].concat());
        assert_eq!(of(4), PRIOR, "a pool that comes back or is new starts over");
        assert_eq!(of(0), before.0);
    }

    #[test]
    fn a_configured_rate_holds_from_the_next_reload_and_what_was_learned_stays() {
        let rates = LearnedRates::new(1, PRIOR);
        let slot = ReplicaSlot(0);
        train(&rates, slot, 2e-5, 0.01, &mut fastrand::Rng::with_seed(2));
        let learned = rates.rates(slot);
        rates.assign(&[Member { prefill_tokens_per_s: Some(1000.0), ..member(0, "m") }]);
        assert!(near(rates.rates(slot).prefill_s_per_token, 1e-3));
        assert_eq!(rates.samples(slot), 300);
        rates.assign(&[member(0, "m")]);
        assert!((rates.rates(slot).prefill_s_per_token / learned.prefill_s_per_token - 1.0).abs() < 0.1);
    }

    #[test]
    fn bytes_per_token_follow_the_engine() {
        let ratio = TokenRatio::default();
        for _ in 0..200 {
            ratio.learn(6000, 2000);
        }
        assert!((ratio.bytes_per_token() - 3.0).abs() < 0.05);
        ratio.learn(0, 10);
        ratio.learn(10, 0);
        assert!((ratio.bytes_per_token() - 3.0).abs() < 0.05);
    }
}
