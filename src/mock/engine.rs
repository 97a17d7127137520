//! The scheduler of a mock engine: slots, one prefill at a time in order of arrival, decode steps that slow down as the
//! batch grows, and a block cache that decides how much of a prompt is left to prefill. A request dropped at any point
//! gives back what it holds at once.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};

use super::cache::{BlockCache, Pinned};
use super::prompt::Tokens;
use super::{MockEngineConfig, MockStats};

/// Shared state of one engine.
#[derive(Debug)]
pub(super) struct Engine {
    config: MockEngineConfig,
    slots: Arc<Semaphore>,
    prefill: tokio::sync::Mutex<()>,
    blocks_released: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cache: BlockCache,
    stats: MockStats,
}

/// The prompt does not fit the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong {
    pub(super) prompt_tokens: u64,
    pub(super) limit: u64,
}

impl Engine {
    pub(super) fn new(config: MockEngineConfig) -> Arc<Self> {
        let block_tokens = u64::from(config.block_tokens.max(1));
        let blocks = usize::try_from(config.kv_tokens / block_tokens).unwrap_or(usize::MAX);
        let slots = (config.slots.max(1) as usize).min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(slots)),
            prefill: tokio::sync::Mutex::new(()),
            blocks_released: Notify::new(),
            state: Mutex::new(State { cache: BlockCache::new(blocks), stats: MockStats::default() }),
            config,
        })
    }

    pub(super) const fn config(&self) -> &MockEngineConfig {
        &self.config
    }

    /// Counters and gauges as they stand.
    pub(super) fn stats(&self) -> MockStats {
        let state = self.state.lock();
        MockStats {
            blocks_total: state.cache.capacity() as u64,
            blocks_held: state.cache.len() as u64,
            blocks_pinned: state.cache.pinned() as u64,
            blocks_evicted: state.cache.evicted(),
            ..state.stats.clone()
        }
    }

    /// Changes the counters.
    pub(super) fn count(&self, change: impl FnOnce(&mut MockStats)) {
        change(&mut self.state.lock().stats);
    }

    /// Forgets the cache.
    pub(super) fn clear_cache(&self) {
        let mut state = self.state.lock();
        state.cache.clear();
        state.stats.restarts += 1;
        drop(state);
        self.blocks_released.notify_waiters();
    }

    /// Waits for a slot and for the prefill of `tokens`.
    ///
    /// # Errors
    /// [`TooLong`] when the cache could never hold the prompt.
    pub(super) async fn prefill(self: &Arc<Self>, tokens: &Tokens) -> Result<Running, TooLong> {
        let chain = tokens.chain(self.config.block_tokens);
        let (prompt_tokens, limit) = (tokens.len(), self.config.kv_tokens);
        if prompt_tokens > limit {
            return Err(TooLong { prompt_tokens, limit });
        }
        let mut running = Running::waiting(Arc::clone(self), prompt_tokens);
        running.permit = Arc::clone(&self.slots).acquire_owned().await.ok();
        let turn = self.prefill.lock().await;
        let reusable = self.reserve(&mut running, chain).await;
        let cached = (reusable as u64 * u64::from(self.config.block_tokens)).min(prompt_tokens);
        running.begin(cached);
        let work = prefill_time(&self.config, prompt_tokens - cached);
        if !work.is_zero() {
            sleep(work).await;
        }
        drop(turn);
        running.phase = Phase::Decoding;
        running.next_token_at = Instant::now();
        Ok(running)
    }

    /// Pins the prompt's blocks, waiting for others to end if need be. Returns how many were there already, at most
    /// all but the last token's: that one is always computed.
    async fn reserve(&self, running: &mut Running, chain: Vec<u64>) -> usize {
        let most =
            usize::try_from(running.prompt_tokens.saturating_sub(1) / u64::from(self.config.block_tokens.max(1)))
                .unwrap_or(usize::MAX);
        loop {
            let released = self.blocks_released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            {
                let mut state = self.state.lock();
                let matched = state.cache.matched(&chain);
                if let Some(pinned) = state.cache.pin(chain.clone()) {
                    running.pinned = Some(pinned);
                    running.matched_blocks = matched;
                    return matched.min(most);
                }
            }
            released.await;
        }
    }
}

/// Time to prefill `tokens` that are not cached.
fn prefill_time(config: &MockEngineConfig, tokens: u64) -> Duration {
    let rate = config.prefill_tokens_per_s;
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    let seconds = if rate > 0.0 { tokens as f64 / rate } else { 0.0 };
    config.prefill_base + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Prefilling,
    Decoding,
    Done,
}

/// A request in the engine. Dropping it before [`Running::finish`] is a cancellation.
#[derive(Debug)]
pub(super) struct Running {
    engine: Arc<Engine>,
    phase: Phase,
    permit: Option<OwnedSemaphorePermit>,
    pinned: Option<Pinned>,
    matched_blocks: usize,
    next_token_at: Instant,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
}

impl Running {
    fn waiting(engine: Arc<Engine>, prompt_tokens: u64) -> Self {
        engine.count(|stats| stats.waiting += 1);
        Self {
            engine,
            phase: Phase::Waiting,
            permit: None,
            pinned: None,
            matched_blocks: 0,
            next_token_at: Instant::now(),
            prompt_tokens,
            cached_tokens: 0,
        }
    }

    fn begin(&mut self, cached_tokens: u64) {
        self.phase = Phase::Prefilling;
        self.cached_tokens = cached_tokens;
        self.engine.count(|stats| {
            stats.waiting -= 1;
            stats.running += 1;
            stats.prompt_tokens += self.prompt_tokens;
            stats.cached_tokens += cached_tokens;
        });
    }

    /// Waits until the next output token is there.
    pub(super) async fn token(&mut self) {
        let config = self.engine.config();
        let mut step = config.decode_step;
        if !config.decode_per_request.is_zero() {
            let batch = self.engine.state.lock().stats.running;
            step += config.decode_per_request * u32::try_from(batch).unwrap_or(u32::MAX);
        }
        if !step.is_zero() {
            self.next_token_at += step;
            sleep_until(self.next_token_at).await;
        }
    }

    /// The answer is complete: `tokens` is the prompt followed by the output, whose blocks stay in the cache.
    pub(super) fn finish(mut self, tokens: &Tokens) {
        self.phase = Phase::Done;
        let chain = tokens.chain(self.engine.config.block_tokens);
        let output_tokens = tokens.len().saturating_sub(self.prompt_tokens);
        let mut state = self.engine.state.lock();
        state.stats.output_tokens += output_tokens;
        if let Some(pinned) = &mut self.pinned
            && let Some(more) = chain.get(pinned.len()..)
        {
            state.cache.extend(pinned, more);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.engine.state.lock();
        match self.phase {
            Phase::Waiting => state.stats.waiting -= 1,
            Phase::Prefilling | Phase::Decoding | Phase::Done => state.stats.running -= 1,
        }
        if self.phase == Phase::Done {
            state.stats.completed += 1;
        } else {
            state.stats.cancelled += 1;
        }
        if let Some(pinned) = &self.pinned {
            let computed = match self.phase {
                Phase::Waiting | Phase::Prefilling => self.matched_blocks,
                Phase::Decoding | Phase::Done => usize::MAX,
            };
            state.cache.release(pinned, computed);
            self.engine.blocks_released.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(config: MockEngineConfig) -> Arc<Engine> {
        Engine::new(config)
    }

    fn timed() -> MockEngineConfig {
        MockEngineConfig {
            prefill_tokens_per_s: 1_000.0,
            prefill_base: Duration::from_millis(10),
            decode_step: Duration::from_millis(5),
            decode_per_request: Duration::from_millis(1),
            slots: 2,
            kv_tokens: 1_600,
            ..MockEngineConfig::default()
        }
    }

    fn tokens(count: usize, fill: u8) -> Tokens {
        Tokens::new(vec![fill; count * 4], 4.0)
    }

    #[tokio::test(start_paused = true)]
    async fn prefill_costs_what_is_not_cached_and_decode_grows_with_the_batch() {
        let engine = engine(timed());
        let start = Instant::now();
        let mut first = engine.prefill(&tokens(320, b'a')).await.unwrap();
        assert!((330..=332).contains(&start.elapsed().as_millis())); // tokio's timer rounds up
        assert_eq!((first.prompt_tokens, first.cached_tokens), (320, 0));
        let start = Instant::now();
        first.token().await;
        assert!((6..=8).contains(&start.elapsed().as_millis()));
        first.finish(&tokens(324, b'a'));
        let start = Instant::now();
        let second = engine.prefill(&tokens(320, b'a')).await.unwrap();
        assert_eq!(second.cached_tokens, 304); // the last block holds the last token
        assert!((26..=28).contains(&start.elapsed().as_millis()));
        drop(second);
        let stats = engine.stats();
        assert_eq!((stats.completed, stats.cancelled, stats.running, stats.waiting), (1, 1, 0, 0));
        assert_eq!(stats.blocks_pinned, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn slots_bound_the_running_and_a_dropped_wait_leaves_no_trace() {
        let engine = engine(timed());
        let one = engine.prefill(&tokens(16, 1)).await.unwrap();
        let two = engine.prefill(&tokens(16, 2)).await.unwrap();
        let third = tokens(16, 3);
        let waited = tokio::time::timeout(Duration::from_secs(1), engine.prefill(&third)).await;
        assert!(waited.is_err());
        assert_eq!((engine.stats().waiting, engine.stats().running, engine.stats().cancelled), (0, 2, 1));
        drop(one);
        assert!(engine.prefill(&third).await.is_ok());
        drop(two);
    }

    #[tokio::test(start_paused = true)]
    async fn an_aborted_prefill_caches_nothing_and_frees_the_line() {
        let engine = engine(timed());
        let prompt = tokens(800, 7);
        assert!(tokio::time::timeout(Duration::from_millis(100), engine.prefill(&prompt)).await.is_err());
        assert_eq!((engine.stats().blocks_held, engine.stats().cancelled), (0, 1));
        let again = engine.prefill(&prompt).await.unwrap();
        assert_eq!(again.cached_tokens, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn pinned_blocks_make_others_wait_and_too_long_is_refused() {
        let engine = engine(timed());
        let big = engine.prefill(&tokens(1_200, 1)).await.unwrap();
        let other = tokens(800, 2);
        assert!(tokio::time::timeout(Duration::from_secs(9), engine.prefill(&other)).await.is_err());
        let waiting = engine.prefill(&other);
        let (granted, ()) = tokio::join!(waiting, async { drop(big) });
        assert!(granted.is_ok());
        assert_eq!(
            engine.prefill(&tokens(1_601, 1)).await.unwrap_err(),
            TooLong { prompt_tokens: 1_601, limit: 1_600 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_extends_the_cache_for_the_next_turn() {
        let engine = engine(timed());
        let prompt = tokens(160, b'x');
        let running = engine.prefill(&prompt).await.unwrap();
        let whole = tokens(240, b'x');
        running.finish(&whole);
        assert_eq!(engine.prefill(&tokens(260, b'x')).await.unwrap().cached_tokens, 240);
        engine.clear_cache();
        assert_eq!(engine.prefill(&tokens(260, b'x')).await.unwrap().cached_tokens, 0);
    }
}
