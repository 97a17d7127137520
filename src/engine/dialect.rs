//! Which metric of which engine says what. The tables are what to change when an engine renames a metric: an alias is a
//! further rule for the same figure, the preferred first.
//!
//! Sources: vLLM `vllm/v1/metrics/loggers.py`, SGLang `srt/observability/metrics_collector.py`, TensorRT-LLM
//! `tensorrt_llm/metrics/collector.py`, Triton `tensorrtllm_backend` (`custom_metrics_reporter`), llama.cpp
//! `tools/server`; recorded and rebuilt pages lie in `tests/pages`.

use std::borrow::Cow;

/// What a metric tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Requests running.
    Running,
    /// Requests in the queue.
    Waiting,
    /// Requests known to the engine, running or not.
    Active,
    /// Requests it can run at once.
    Slots,
    /// Share of the KV cache in use.
    KvUsage,
    /// Blocks of the KV cache in use.
    KvBlocksUsed,
    /// Blocks of the KV cache.
    KvBlocks,
    /// Tokens to a block.
    KvBlockTokens,
    /// Tokens the KV cache holds.
    KvTokens,
    /// Prompt tokens that wait for their prefill.
    PrefillTokens,
    /// Prompt tokens looked up in the prefix cache.
    Queried,
    /// Of these, found.
    Hit,
    /// Prompt tokens that were not found.
    Missed,
    /// Blocks found in the prefix cache, and not found.
    BlocksHit,
    /// See `BlocksHit`.
    BlocksMissed,
    /// Blocks evicted.
    BlocksEvicted,
    /// Tokens evicted.
    TokensEvicted,
    /// When the process started, seconds of Unix time.
    Started,
    /// 1 while the engine is awake.
    Awake,
}

impl Figure {
    /// How many there are: figures index arrays.
    pub(crate) const COUNT: usize = Self::Awake as usize + 1;
}

/// What to do with several series of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    /// Add them: each data-parallel engine of the page has its own.
    Sum,
    /// Add what the data-parallel ranks say, the greatest of each: the tensor-parallel ranks of one say the same thing
    /// over, and priorities are parts of a total that stands beside them.
    Ranks,
    /// Their mean. For shares: the ranks' caches are of one size, so the mean is the share of all blocks in use, which
    /// is what is asked of the replica as a whole. (The greatest would call a replica full whose other ranks have room;
    /// its own balancer sends the next request there.)
    Mean,
    /// The least.
    Least,
    /// The greatest.
    Greatest,
}

/// A metric, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The metric's name.
    pub(crate) name: Cow<'static, str>,
    /// A label and the value it must have.
    pub(crate) label: Option<(Cow<'static, str>, Cow<'static, str>)>,
    /// What it says.
    pub(crate) figure: Figure,
    /// What several series come to.
    pub(crate) fold: Fold,
}

const fn rule(figure: Figure, name: &'static str, fold: Fold) -> Rule {
    Rule { name: Cow::Borrowed(name), label: None, figure, fold }
}

const fn labelled(figure: Figure, name: &'static str, label: (&'static str, &'static str), fold: Fold) -> Rule {
    let (key, value) = label;
    Rule { name: Cow::Borrowed(name), label: Some((Cow::Borrowed(key), Cow::Borrowed(value))), figure, fold }
}

/// A metric that says things by its labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InfoNames {
    /// Settings of the KV cache: its name, and the labels of blocks, tokens to a block, and tokens.
    pub(crate) cache: Option<(&'static str, [Option<&'static str>; 3])>,
    /// Adapters of requests: its name, and the labels of those running and waiting.
    pub(crate) adapters: Option<(&'static str, [&'static str; 2])>,
    /// The label of `Running` that names the model.
    pub(crate) model: Option<&'static str>,
}

/// All that is known of one engine's page.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    pub(crate) rules: Vec<Rule>,
    pub(crate) info: InfoNames,
    /// What the engine's own names begin with.
    pub(crate) prefix: &'static str,
    /// Figures a page must have.
    pub(crate) needed: &'static [Figure],
    /// The gauges appear with the first request: until then, any of its own names will do, and absent counts are 0.
    pub(crate) is_lazy: bool,
}

const BOTH: &[Figure] = &[Figure::Running, Figure::Waiting];

/// The start of the process, where the Prometheus client library says it.
const STARTED: Rule = rule(Figure::Started, "process_start_time_seconds", Fold::Least);

pub(crate) fn vllm() -> Dialect {
    use Figure::{Awake, Hit, KvUsage, Queried, Running, Waiting};
    Dialect {
        rules: vec![
            rule(Running, "vllm:num_requests_running", Fold::Sum),
            rule(Waiting, "vllm:num_requests_waiting", Fold::Sum),
            rule(KvUsage, "vllm:kv_cache_usage_perc", Fold::Mean),
            rule(KvUsage, "vllm:gpu_cache_usage_perc", Fold::Mean), // to 0.10
            rule(Queried, "vllm:prefix_cache_queries_total", Fold::Sum),
            rule(Queried, "vllm:prefix_cache_queries", Fold::Sum),
            rule(Queried, "vllm:gpu_prefix_cache_queries_total", Fold::Sum), // to 0.10
            rule(Hit, "vllm:prefix_cache_hits_total", Fold::Sum),
            rule(Hit, "vllm:prefix_cache_hits", Fold::Sum),
            rule(Hit, "vllm:gpu_prefix_cache_hits_total", Fold::Sum), // to 0.10
            labelled(Awake, "vllm:engine_sleep_state", ("sleep_state", "awake"), Fold::Least),
            STARTED,
        ],
        info: InfoNames {
            cache: Some((
                "vllm:cache_config_info",
                [Some("num_gpu_blocks"), Some("block_size"), Some("kv_cache_size_tokens")],
            )),
            adapters: Some(("vllm:lora_requests_info", ["running_lora_adapters", "waiting_lora_adapters"])),
            model: Some("model_name"),
        },
        prefix: "vllm:",
        needed: BOTH,
        // With several engines in one server, each appears with its first step.
        is_lazy: true,
    }
}

pub(crate) fn sglang() -> Dialect {
    use Figure::{Hit, KvTokens, KvUsage, Queried, Running, TokensEvicted, Waiting};
    Dialect {
        rules: vec![
            rule(Running, "sglang:num_running_reqs", Fold::Ranks),
            rule(Waiting, "sglang:num_queue_reqs", Fold::Ranks),
            rule(KvUsage, "sglang:token_usage", Fold::Mean),
            rule(KvTokens, "sglang:max_total_num_tokens", Fold::Ranks),
            rule(Queried, "sglang:prompt_tokens_total", Fold::Sum),
            rule(Hit, "sglang:cached_tokens_total", Fold::Sum), // one for each tier it was found in
            rule(TokensEvicted, "sglang:evicted_tokens_total", Fold::Sum),
            STARTED,
        ],
        info: InfoNames {
            cache: Some(("sglang:cache_config_info", [Some("num_pages"), Some("page_size"), None])),
            adapters: None,
            model: Some("model_name"),
        },
        prefix: "sglang:",
        needed: BOTH,
        is_lazy: true,
    }
}

pub(crate) fn trtllm() -> Dialect {
    use Figure::{
        BlocksHit, BlocksMissed, Hit, KvBlockTokens, KvBlocks, KvBlocksUsed, KvUsage, Queried, Running, Slots, Waiting,
    };
    Dialect {
        rules: vec![
            rule(Running, "trtllm_num_requests_running", Fold::Sum),
            rule(Waiting, "trtllm_num_requests_waiting", Fold::Sum),
            rule(Slots, "trtllm_max_num_active_requests", Fold::Sum),
            rule(KvUsage, "trtllm_kv_cache_utilization", Fold::Mean),
            rule(KvBlocksUsed, "trtllm_kv_cache_used_blocks", Fold::Sum),
            rule(KvBlocks, "trtllm_kv_cache_max_blocks", Fold::Sum),
            rule(KvBlockTokens, "trtllm_kv_cache_tokens_per_block", Fold::Greatest),
            rule(Queried, "trtllm_prompt_tokens_total", Fold::Sum),
            rule(Hit, "trtllm_prompt_cached_tokens_total", Fold::Sum),
            rule(BlocksHit, "trtllm_kv_cache_reused_blocks_total", Fold::Sum),
            rule(BlocksMissed, "trtllm_kv_cache_missed_blocks_total", Fold::Sum),
            STARTED,
        ],
        info: InfoNames { cache: None, adapters: None, model: Some("model_name") },
        prefix: "trtllm_",
        needed: BOTH,
        is_lazy: true,
    }
}

pub(crate) fn triton() -> Dialect {
    use Figure::{Active, KvBlockTokens, KvBlocks, KvBlocksUsed, KvUsage, Running, Slots, Waiting};
    let requests = |figure, kind| labelled(figure, "nv_trt_llm_request_metrics", ("request_type", kind), Fold::Sum);
    let blocks =
        |figure, kind, fold| labelled(figure, "nv_trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", kind), fold);
    Dialect {
        rules: vec![
            requests(Running, "scheduled"),
            requests(Waiting, "waiting"), // from 25.03; before, what is active and not scheduled
            requests(Active, "active"),
            requests(Slots, "max"),
            blocks(KvUsage, "fraction", Fold::Mean),
            blocks(KvBlocksUsed, "used", Fold::Sum),
            blocks(KvBlocks, "max", Fold::Sum),
            blocks(KvBlockTokens, "tokens_per", Fold::Greatest),
            STARTED,
        ],
        info: InfoNames { cache: None, adapters: None, model: Some("model") },
        prefix: "nv_trt_llm_",
        needed: &[Running],
        is_lazy: false,
    }
}

pub(crate) fn llamacpp() -> Dialect {
    use Figure::{Hit, KvUsage, Missed, Running, Waiting};
    Dialect {
        rules: vec![
            rule(Running, "llamacpp:requests_processing", Fold::Sum),
            rule(Waiting, "llamacpp:requests_deferred", Fold::Sum),
            rule(KvUsage, "llamacpp:kv_cache_usage_ratio", Fold::Mean), // builds of before mid-2025
            rule(Missed, "llamacpp:prompt_tokens_total", Fold::Sum),    // without those from the cache
            rule(Hit, "llamacpp:prompt_tokens_cached_total", Fold::Sum),
            STARTED,
        ],
        info: InfoNames::default(),
        prefix: "llamacpp:",
        needed: BOTH,
        is_lazy: false,
    }
}

/// What a user says of an engine that is not known here.
pub(crate) const fn custom(rules: Vec<Rule>) -> Dialect {
    Dialect {
        rules,
        info: InfoNames { cache: None, adapters: None, model: None },
        prefix: "",
        needed: BOTH,
        is_lazy: false,
    }
}
