//! `emberlane agent --once`: one look at the page, and what a beacon would say of it, for people who set an agent up.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::compose::{Composer, Times};
use super::config::AgentConfig;
use super::restart::Incarnation;
use super::scrape::{Asker, Look, Scraper};
use super::{AgentError, Clock, SenderId, facts, read_keys, sight};
use crate::engine::Reading;
use crate::wire::beacon::Beacon;

/// Looks once; the text to print: a table of what the page says, then the decoded beacon as JSON.
///
/// # Errors
/// See [`AgentError`].
pub fn once(config: &AgentConfig) -> Result<String, AgentError> {
    let keys = read_keys(config.key_file.as_deref())?;
    let clock = Clock::new();
    let look = Scraper::new(config, clock)
        .look_once()
        .map_err(|fault| AgentError::Look { url: config.metrics.to_string(), why: fault.to_string() })?;
    let served = Asker::new(&config.api, clock).ask(look.reading.engine);
    let unix_ns = Clock::unix_ns();
    let mut incarnation = Incarnation::new(unix_ns / 1_000);
    incarnation.see(sight(&look, unix_ns / 1_000, &mut None), unix_ns / 1_000);
    let mut composer = Composer::new(SenderId::of(&config.sender_text()), unix_ns / 1_000);
    composer.set_facts(facts(config, Some(&look.reading), &served));
    let period_us = u32::try_from(config.period.as_micros()).unwrap_or(u32::MAX);
    let times = Times { now: clock.now(), unix_ns, incarnation: incarnation.current(), period_us };
    let mut datagram = Vec::new();
    let encoded = composer.next(look.reading.load(), times).encode(keys.signing(), &mut datagram);
    let mut text = table(&look);
    let beacon = match (encoded, Beacon::parse(&datagram)) {
        (Ok(()), Ok(beacon)) => shown(&beacon, datagram.len(), composer.facts().models.len()),
        (Err(oversize), _) => json!({ "error": oversize.to_string() }),
        (Ok(()), Err(fault)) => json!({ "error": fault.to_string() }),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n{beacon:#}");
    Ok(text)
}

/// What the page says, a line each.
fn table(look: &Look) -> String {
    let Reading { engine, is_awake, running, waiting, lines_broken, models, .. } = &look.reading;
    let reading = &look.reading;
    let list = |names: &Option<Vec<String>>| names.as_ref().map(|names| names.join(", "));
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let rows = [
        ("engine", Some(engine.to_string())),
        ("awake", Some(is_awake.to_string())),
        ("running", Some(running.to_string())),
        ("waiting", Some(waiting.to_string())),
        ("slots", number(reading.slots.map(u64::from))),
        ("KV usage", reading.kv_usage.map(|usage| format!("{:.1} %", usage * 100.0))),
        ("KV blocks", number(reading.kv_blocks.map(u64::from))),
        ("tokens to a block", number(reading.kv_block_tokens.map(u64::from))),
        ("prefill tokens waiting", number(reading.prefill_tokens.map(u64::from))),
        ("blocks evicted", number(reading.blocks_evicted)),
        ("prefix tokens queried", number(reading.prefix_tokens_queried)),
        ("prefix tokens hit", number(reading.prefix_tokens_hit)),
        ("started (Unix µs)", number(reading.started_unix_us)),
        ("models on the page", Some(models.join(", "))),
        ("adapters running", list(&reading.adapters_loaded)),
        ("adapters waiting", list(&reading.adapters_waiting)),
        ("lines not understood", Some(lines_broken.to_string())),
        ("took", Some(format!("{} µs", look.took.as_micros()))),
    ];
    rows.into_iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:24}{}", value.unwrap_or_else(|| "not told".to_owned()));
        text
    })
}

/// A beacon in JSON.
fn shown(beacon: &Beacon<'_>, bytes: usize, models: usize) -> Value {
    let (head, load, facts) = (beacon.head(), beacon.load(), beacon.facts());
    json!({
        "bytes": bytes,
        "key": beacon.key_id(),
        "sender": format!("{:016x}", head.sender.0),
        "incarnation": head.incarnation,
        "sequence": head.sequence,
        "period_us": head.period_us,
        "load": {
            "ready": load.ready,
            "draining": load.draining,
            "running": load.running,
            "waiting": load.waiting,
            "kv_usage": load.kv_usage,
            "kv_blocks": load.kv_blocks,
            "kv_block_tokens": load.kv_block_tokens,
            "prefill_tokens": load.prefill_tokens,
            "cache_resets": load.cache_resets,
            "blocks_evicted": load.blocks_evicted,
            "prefix_tokens_queried": load.prefix_tokens_queried,
            "prefix_tokens_hit": load.prefix_tokens_hit,
        },
        "facts": {
            "url": facts.url,
            "engine": facts.engine,
            "slots": facts.slots,
            "models": facts.models,
            "adapters_loaded": facts.adapters_loaded,
            "adapters_waiting": facts.adapters_waiting,
            "labels": facts.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(),
        },
        "models_in_all": models,
    })
}
