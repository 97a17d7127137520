//! The parameters of the policies that others use, read and checked.

use std::time::Duration;

use super::super::baselines::{
    CacheAwareConfig, ChwblConfig, DualMapConfig, DynamoConfig, PrebleConfig, SpillGateConfig,
    StickyUntilSaturatedConfig, Weights,
};
use super::super::read::{Field, Section};
use super::{MILLISECOND, RATE_MAX, SLOTS_MAX};

const HOUR: Duration = Duration::from_secs(3600);
const VIRTUAL_NODES_MAX: u16 = 1024;

pub(super) fn weights(field: &Field<'_>) -> Option<Weights> {
    let mut section = field.section("fields `prefix`, `queue`, `kv` and `no_hit_lru`")?;
    let default = Weights::default();
    let mut weight = |name, default| section.read(name, default, |field| field.number(0.0..=1e6));
    let weights = Weights {
        prefix: weight("prefix", default.prefix),
        queue: weight("queue", default.queue),
        kv: weight("kv", default.kv),
        no_hit_lru: weight("no_hit_lru", default.no_hit_lru),
    };
    section.finish();
    if [weights.prefix, weights.queue, weights.kv, weights.no_hit_lru].iter().all(|weight| *weight <= 0.0) {
        return field.fail("all weights are 0, so every replica would be the same; give one of them more");
    }
    Some(weights)
}

pub(super) fn sticky_until_saturated(field: &Field<'_>) -> Option<StickyUntilSaturatedConfig> {
    let mut section = field.section("fields such as `break_after`")?;
    let default = StickyUntilSaturatedConfig::default();
    let config = StickyUntilSaturatedConfig {
        affinity: section.read("affinity", default.affinity, Field::share),
        break_after: section.read("break_after", default.break_after, |field| field.duration(Duration::ZERO..=HOUR)),
        prefill_tokens_per_s: section
            .read("prefill_tokens_per_s", default.prefill_tokens_per_s, |field| field.number(1.0..=RATE_MAX)),
    };
    section.finish();
    Some(config)
}

pub(super) fn chwbl(field: &Field<'_>) -> Option<ChwblConfig> {
    let mut section = field.section("fields such as `load_factor`")?;
    let default = ChwblConfig::default();
    let config = ChwblConfig {
        load_factor: section.read("load_factor", default.load_factor, |field| field.number(1.0..=1000.0)),
        virtual_nodes: virtual_nodes(&mut section, default.virtual_nodes),
    };
    section.finish();
    Some(config)
}

pub(super) fn cache_aware(field: &Field<'_>) -> Option<CacheAwareConfig> {
    let mut section = field.section("fields such as `cache_threshold`")?;
    let default = CacheAwareConfig::default();
    let config = CacheAwareConfig {
        cache_threshold: section.read("cache_threshold", default.cache_threshold, Field::share),
        balance_abs_threshold: section
            .read("balance_abs_threshold", default.balance_abs_threshold, |field| field.count(0..=SLOTS_MAX)),
        balance_rel_threshold: section
            .read("balance_rel_threshold", default.balance_rel_threshold, |field| field.number(1.0..=1000.0)),
    };
    section.finish();
    Some(config)
}

pub(super) fn spill_gate(field: &Field<'_>) -> Option<SpillGateConfig> {
    let mut section = field.section("fields such as `ratio`")?;
    let default = SpillGateConfig::default();
    let config = SpillGateConfig {
        cache_threshold: section.read("cache_threshold", default.cache_threshold, Field::share),
        ratio: section.read("ratio", default.ratio, |field| field.number(1.0..=1000.0)),
        margin_min: section.read("margin_min", default.margin_min, |field| field.count(0..=SLOTS_MAX)),
        margin_max: section.read("margin_max", default.margin_max, |field| field.count(0..=SLOTS_MAX)),
        request_tokens: section.read("request_tokens", default.request_tokens, |field| field.number(0.0..=RATE_MAX)),
        tokens_per_s: section.read("tokens_per_s", default.tokens_per_s, |field| field.number(1.0..=RATE_MAX)),
        kv_pressure: section.read("kv_pressure", default.kv_pressure, |field| field.duration(Duration::ZERO..=HOUR)),
        warm_up_every: section.read("warm_up_every", default.warm_up_every, |field| field.count(0..=SLOTS_MAX)),
    };
    if section.is_clean() && config.margin_min > config.margin_max {
        section.fail_at("margin_min", format!("above `margin_max`, which is {}", config.margin_max));
    }
    section.finish();
    Some(config)
}

pub(super) fn dynamo(field: &Field<'_>) -> Option<DynamoConfig> {
    let mut section = field.section("fields such as `overlap_score_credit`")?;
    let default = DynamoConfig::default();
    let config = DynamoConfig {
        overlap_score_credit: section
            .read("overlap_score_credit", default.overlap_score_credit, |field| field.number(0.0..=1000.0)),
        prefill_load_scale: section
            .read("prefill_load_scale", default.prefill_load_scale, |field| field.number(0.0..=1000.0)),
    };
    section.finish();
    Some(config)
}

pub(super) fn dualmap(field: &Field<'_>) -> Option<DualMapConfig> {
    let mut section = field.section("fields such as `ttft_slo`")?;
    let default = DualMapConfig::default();
    let config = DualMapConfig {
        ttft_slo: section.read("ttft_slo", default.ttft_slo, |field| field.duration(MILLISECOND..=HOUR)),
        virtual_nodes: virtual_nodes(&mut section, default.virtual_nodes),
    };
    section.finish();
    Some(config)
}

pub(super) fn preble(field: &Field<'_>) -> Option<PrebleConfig> {
    let mut section = field.section("field `window`")?;
    let default = PrebleConfig::default();
    let window = section.read("window", default.window, |field| field.duration(Duration::from_secs(1)..=HOUR));
    section.finish();
    Some(PrebleConfig { window })
}

fn virtual_nodes(section: &mut Section<'_>, default: u16) -> u16 {
    section.read("virtual_nodes", default, |field| field.count(1..=VIRTUAL_NODES_MAX))
}
