//! Looks at the engine's page again and again, and asks now and then what it serves.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use url::Url;

use super::Shared;
use super::config::AgentConfig;
use super::http::{Answer, Client, HttpFault};
use crate::clock::{Clock, Now};
use crate::engine::{CustomNames, Engine, PageFault, Reader, Reading};

/// Longest wait for a page. Long, because an engine whose front end is busy is not gone.
const PAGE_LIMIT: Duration = Duration::from_secs(3);
/// The same while the engine does not answer: beacons that say so are sent in between.
const PAGE_LIMIT_DOWN: Duration = Duration::from_secs(1);
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
pub(super) struct Scraper<L> {
    client: Client<L>,
    path: String,
    reader: Reader,
    clock: Clock,
}

impl Scraper<tokio::net::TcpStream> {
    /// A reader of the page at `url`, whichever engine's it is.
    pub(super) fn at(url: &Url, clock: Clock) -> Self {
        let reader = Reader::new(Engine::Auto, CustomNames::default());
        Self { client: Client::new(url, clock), path: target(url), reader, clock }
    }

    /// Looks once, for no longer than `limit`.
    pub(super) async fn look_within(&mut self, limit: Duration) -> Result<Look, LookFault> {
        let began = self.clock.now();
        let answer = self.client.get(&self.path, limit).await?;
        seen(&mut self.reader, answer, self.clock, began)
    }
}

impl Scraper<std::net::TcpStream> {
    /// A reader of the page that `config` names.
    pub(super) fn new(config: &AgentConfig, clock: Clock) -> Self {
        let reader = Reader::new(config.engine, config.custom.clone());
        Self { client: Client::new(&config.metrics, clock), path: target(&config.metrics), reader, clock }
    }

    /// Looks once; blocks.
    fn look(&mut self, limit: Duration) -> Result<Look, LookFault> {
        let began = self.clock.now();
        let answer = self.client.get_blocking(&self.path, limit)?;
        seen(&mut self.reader, answer, self.clock, began)
    }

    /// Looks once, as patiently as is right for an engine that is believed to be there.
    pub(super) fn look_once(&mut self) -> Result<Look, LookFault> {
        self.look(PAGE_LIMIT)
    }

    /// Looks every `period` until `stop` is closed, and tells the agent. After a look that failed it pauses, longer each
    /// time, and the agent says every period that the engine is not ready.
    pub(super) fn run(mut self, period: Duration, agent: &Shared, stop: &Receiver<()>) {
        let mut due = self.clock.now();
        let mut pause = period;
        loop {
            let is_well = pause == period;
            match self.look(if is_well { PAGE_LIMIT } else { PAGE_LIMIT_DOWN }) {
                Ok(look) => {
                    agent.lock().looked(look);
                    pause = period;
                }
                Err(fault) => {
                    agent.lock().not_looked(&fault);
                    if self.pause(pause, period, agent, stop) {
                        return;
                    }
                    pause = (pause * 2).clamp(period + Duration::from_nanos(1), PAUSE_MAX.max(period * 2));
                }
            }
            // A look that is late is not made up for, and does not delay those after it.
            let now = self.clock.now();
            due = due.plus(period);
            while due < now {
                due = due.plus(period * late_periods(now.since(due), period));
            }
            if is_stopped(stop, due.since(now)) {
                return;
            }
        }
    }
}

impl Scraper<std::net::TcpStream> {
    /// Does not look for `pause`, less a period, in which the agent says what it has to; true when it is to stop.
    fn pause(&self, pause: Duration, period: Duration, agent: &Shared, stop: &Receiver<()>) -> bool {
        let until = self.clock.now().plus(pause);
        while self.clock.now().plus(period) < until {
            if is_stopped(stop, period) {
                return true;
            }
            agent.lock().tell_not_ready();
        }
        false
    }
}

/// Reads the page of an answer.
fn seen(reader: &mut Reader, answer: Answer<'_>, clock: Clock, began: Now) -> Result<Look, LookFault> {
    let start_mark = answer.start_mark;
    let reading = reader.read(answer.body)?.clone();
    Ok(Look { reading, start_mark, took: clock.now().since(began) })
}

/// How many periods to leave out to be in time again.
fn late_periods(late: Duration, period: Duration) -> u32 {
    u32::try_from(late.as_nanos() / period.as_nanos().max(1)).unwrap_or(u32::MAX).saturating_add(1)
}

/// Waits for `pause`; true as soon as `stop` is closed.
pub(super) fn is_stopped(stop: &Receiver<()>, pause: Duration) -> bool {
    matches!(stop.recv_timeout(pause), Err(RecvTimeoutError::Disconnected))
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
    client: Client<std::net::TcpStream>,
}

impl Asker {
    pub(super) fn new(api: &Url, clock: Clock) -> Self {
        Self { client: Client::new(api, clock) }
    }

    /// Asks once. `/props` is llama.cpp's.
    pub(super) fn ask(&mut self, engine: Engine) -> Served {
        let mut served = Served::default();
        if let Ok(answer) = self.client.get_blocking("/v1/models", ASK_LIMIT) {
            served.models = models(answer.body);
        }
        if engine == Engine::LlamaCpp
            && let Ok(answer) = self.client.get_blocking("/props", ASK_LIMIT)
        {
            served.slots = slots(answer.body);
        }
        served
    }

    /// Asks again and again: often until it says something, and at once when `again` is told to, until that is closed.
    pub(super) fn run(mut self, agent: &Shared, again: &Receiver<()>) {
        loop {
            // One that has not been seen yet is not there to be asked.
            let engine = agent.lock().engine();
            let served = engine.map(|engine| self.ask(engine)).unwrap_or_default();
            let [known, unknown] = ASK_EVERY;
            let pause = if served.models.is_empty() { unknown } else { known };
            if served != Served::default() {
                agent.lock().serves(served);
            }
            if is_stopped(again, pause) {
                return;
            }
        }
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
