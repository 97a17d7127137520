//! Looks at the engine's page again and again, and asks now and then what it serves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use url::Url;

use super::Event;
use super::config::AgentConfig;
use super::http::{Client, HttpFault};
use crate::clock::{Clock, Now};
use crate::engine::{CustomNames, Engine, PageFault, Reader, Reading};

/// Longest wait for a page. Long, because an engine whose front end is busy is not gone.
const PAGE_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait for other answers.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Longest pause between two looks at an engine that does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the engine is asked what it serves, once it has said so, and before.
const ASK_EVERY: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(1)];
/// Most models taken from an answer.
const MODELS_MAX: usize = 1024;

/// A look that succeeded.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) reading: Reading,
    /// llama.cpp's mark of its process, see [`super::restart`].
    pub(super) start_mark: Option<u64>,
    /// How long it took, page and reading.
    pub(super) took: Duration,
}

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookFault {
    /// The page could not be had.
    #[error("{0}")]
    Http(#[from] HttpFault),
    /// The page could not be read.
    #[error("{0}")]
    Page(#[from] PageFault),
}

impl LookFault {
    /// Whether it is the settings that are wrong, and not the engine.
    pub(super) const fn is_settings(&self) -> bool {
        match self {
            Self::Http(fault) => fault.is_wrong_address(),
            Self::Page(_) => true,
        }
    }
}

/// Reads one engine's page.
#[derive(Debug)]
pub(super) struct Scraper {
    client: Client,
    path: String,
    reader: Reader,
    clock: Clock,
}

impl Scraper {
    pub(super) fn new(config: &AgentConfig, clock: Clock) -> Self {
        let reader = Reader::new(config.engine, config.custom.clone());
        Self { client: Client::new(&config.metrics), path: target(&config.metrics), reader, clock }
    }

    /// A reader of the page at `url`, whichever engine's it is.
    pub(super) fn at(url: &Url, clock: Clock) -> Self {
        let reader = Reader::new(Engine::Auto, CustomNames::default());
        Self { client: Client::new(url), path: target(url), reader, clock }
    }

    /// Looks once.
    pub(super) async fn look(&mut self) -> Result<Look, LookFault> {
        self.look_within(PAGE_LIMIT).await
    }

    /// Looks once, for no longer than `limit`.
    pub(super) async fn look_within(&mut self, limit: Duration) -> Result<Look, LookFault> {
        let began = self.clock.now();
        let answer = self.client.get(&self.path, limit).await?;
        let start_mark = answer.start_mark;
        let reading = self.reader.read(answer.body)?.clone();
        Ok(Look { reading, start_mark, took: self.clock.now().since(began) })
    }

    /// Looks every `period` until nobody wants to know. Looks that fail are repeated with growing pauses.
    pub(super) async fn run(mut self, period: Duration, events: mpsc::Sender<Event>) {
        let mut ticks = tokio::time::interval(period);
        // A look that is late is not made up for, and does not delay those after it.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut pause = period;
        loop {
            ticks.tick().await;
            let result = self.look().await;
            let failed = result.is_err();
            let event = match result {
                Ok(look) => Event::Looked(look),
                Err(fault) => Event::NotLooked(fault),
            };
            if events.send(event).await.is_err() {
                return;
            }
            if failed {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).clamp(period.min(PAUSE_MAX), PAUSE_MAX);
                ticks.reset();
            } else {
                pause = period;
            }
        }
    }
}

/// What an engine serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Served {
    /// Models, as requests name them; empty when it did not say.
    pub(super) models: Vec<String>,
    /// Requests it runs at once.
    pub(super) slots: Option<u32>,
}

/// Asks an engine what it serves.
#[derive(Debug)]
pub(super) struct Asker {
    client: Client,
}

impl Asker {
    pub(super) fn new(api: &Url) -> Self {
        Self { client: Client::new(api) }
    }

    /// Asks once. `/props` is llama.cpp's.
    pub(super) async fn ask(&mut self, engine: Option<Engine>) -> Served {
        let mut served = Served::default();
        if let Ok(answer) = self.client.get("/v1/models", ASK_LIMIT).await {
            served.models = models(answer.body);
        }
        if engine == Some(Engine::LlamaCpp)
            && let Ok(answer) = self.client.get("/props", ASK_LIMIT).await
        {
            served.slots = slots(answer.body);
        }
        served
    }

    /// Asks again and again: often until it says something, and at once when `again` says so.
    pub(super) async fn run(mut self, engine: Arc<EngineCell>, again: Arc<Notify>, events: mpsc::Sender<Event>) {
        loop {
            let served = match engine.get() {
                None => Served::default(), // it has not been seen yet: nobody to ask
                Some(engine) => self.ask(Some(engine)).await,
            };
            let [known, unknown] = ASK_EVERY;
            let pause = if served.models.is_empty() { unknown } else { known };
            if served != Served::default() && events.send(Event::Served(served)).await.is_err() || events.is_closed() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = again.notified() => {}
            }
        }
    }
}

/// Which engine it is, once known: told by the looks, read by the asker.
#[derive(Debug, Default)]
pub(super) struct EngineCell(parking_lot::Mutex<Option<Engine>>);

impl EngineCell {
    pub(super) fn set(&self, engine: Engine) {
        *self.0.lock() = Some(engine);
    }

    fn get(&self) -> Option<Engine> {
        *self.0.lock()
    }
}

/// Path and query of a URL, as a request names them.
fn target(url: &Url) -> String {
    match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    }
}

fn models(body: &[u8]) -> Vec<String> {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(body) else { return Vec::new() };
    let list = answer.get("data").and_then(serde_json::Value::as_array);
    let names = list.into_iter().flatten().filter_map(|model| model.get("id")?.as_str());
    names.filter(|name| !name.is_empty() && name.len() <= 256).take(MODELS_MAX).map(str::to_owned).collect()
}

fn slots(body: &[u8]) -> Option<u32> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    u32::try_from(answer.get("total_slots")?.as_u64()?).ok().filter(|slots| *slots > 0)
}

/// Microseconds since the machine started, for [`super::restart::started_from_uptime`]; Linux only.
pub(super) fn uptime_us() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, fraction) = text.split_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = fraction.parse().ok()?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + hundredths * 10_000)
}

/// How long it really is from one look to the next: what beacons say their period is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    period: Duration,
    last: Option<Now>,
    /// The longest gap of late, forgotten slowly.
    slowest: Duration,
}

impl Pace {
    pub(super) const fn new(period: Duration) -> Self {
        Self { period, last: None, slowest: Duration::ZERO }
    }

    /// A beacon leaves.
    pub(super) fn beat(&mut self, now: Now) {
        if let Some(last) = self.last {
            self.slowest = now.since(last).max(self.slowest - self.slowest / 8);
        }
        self.last = Some(now);
    }

    /// Microseconds to the next beacon. Not less than the configured period, and more when the engine is slow to
    /// answer; that half a period late is in time keeps the figure steady.
    pub(super) fn period_us(&self) -> u32 {
        let slow = self.slowest > self.period * 3 / 2;
        let period = if slow { self.slowest } else { self.period };
        u32::try_from(period.as_micros()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_slots_are_found() {
        assert_eq!(models(br#"{"data":[{"id":"a"},{"x":1},{"id":"b"},{"id":""}]}"#), ["a", "b"]);
        assert!(models(b"{").is_empty() && models(b"{\"data\":1}").is_empty());
        assert_eq!(
            (slots(br#"{"total_slots":4}"#), slots(br#"{"total_slots":0}"#), slots(b"[]")),
            (Some(4), None, None)
        );
    }

    #[test]
    fn the_pace_is_the_configured_one_unless_the_engine_is_slow() {
        let mut pace = Pace::new(Duration::from_millis(50));
        let mut now = Now(0);
        let mut beat = |pace: &mut Pace, after: u64| {
            now = now.plus(Duration::from_millis(after));
            pace.beat(now);
            pace.period_us()
        };
        assert_eq!([50, 60, 40].map(|after| beat(&mut pace, after)), [50_000; 3]);
        assert_eq!(beat(&mut pace, 400), 400_000);
        let settled = (0..40).map(|_| beat(&mut pace, 50)).collect::<Vec<_>>();
        assert!(settled[0] > 300_000 && settled[39] == 50_000, "{settled:?}");
    }
}
