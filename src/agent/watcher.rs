//! One engine, looked at by a gateway that has no agent there: what its page says, and whether it has restarted.

use super::restart::Incarnation;
use super::scrape::{LookFault, Scraper};
use super::{Mark, sight};
use crate::clock::Clock;
use crate::engine::Reading;
use std::time::Duration;
use url::Url;

/// Follows one engine's page.
#[derive(Debug)]
pub(crate) struct Watcher {
    scraper: Scraper<tokio::net::TcpStream>,
    incarnation: Incarnation,
    mark: Mark,
}

/// What one look gave.
#[derive(Debug)]
pub(crate) struct Seen {
    /// What the page says.
    pub(crate) reading: Reading,
    /// The engine has restarted since the look before.
    pub(crate) is_restart: bool,
}

/// Why a look gave nothing.
#[derive(Debug)]
pub(crate) struct Unseen {
    /// In one word, for metrics.
    pub(crate) kind: &'static str,
    /// In plain words.
    pub(crate) why: String,
}

impl Watcher {
    /// A watcher of the page at `url`, whichever engine's it is.
    pub(crate) fn new(url: &Url, clock: Clock) -> Self {
        Self { scraper: Scraper::at(url, clock), incarnation: Incarnation::new(unix_us()), mark: None }
    }

    /// Looks once, for no longer than `limit`.
    pub(crate) async fn look(&mut self, limit: Duration) -> Result<Seen, Unseen> {
        match self.scraper.look_within(limit).await {
            Ok(look) => {
                let unix_us = unix_us();
                let is_restart = self.incarnation.see(sight(&look, unix_us, &mut self.mark), unix_us);
                Ok(Seen { reading: look.reading, is_restart })
            }
            Err(LookFault::Http(fault)) => {
                if fault.is_refused() {
                    self.incarnation.gone();
                }
                Err(Unseen { kind: "http", why: fault.to_string() })
            }
            Err(LookFault::Page(fault)) => Err(Unseen { kind: "page", why: fault.to_string() }),
        }
    }
}

fn unix_us() -> u64 {
    Clock::unix_ns() / 1000
}
