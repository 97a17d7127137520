//! `/metrics` under vLLM's names, so that whatever scrapes vLLM scrapes a mock engine too.

use std::fmt::Write;

use super::{MockEngineConfig, MockStats};

/// The Prometheus text of `stats`.
pub(super) fn render(config: &MockEngineConfig, stats: &MockStats) -> String {
    let model = config.models.first().map_or("", String::as_str).replace('\\', "\\\\").replace('"', "\\\"");
    #[expect(clippy::cast_precision_loss, reason = "block counts are far below 2^52")]
    let usage = stats.blocks_pinned as f64 / (stats.blocks_total.max(1)) as f64;
    let mut text = String::with_capacity(2_048);
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\nvllm:{name}{{model_name=\"{model}\"}} {value}"
        );
    };
    family("num_requests_running", "gauge", "Requests running.", &stats.running);
    family("num_requests_waiting", "gauge", "Requests waiting.", &stats.waiting);
    family("kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 0 to 1.", &usage);
    family("prefix_cache_queries_total", "counter", "Prompt tokens looked up.", &stats.prompt_tokens);
    family("prefix_cache_hits_total", "counter", "Prompt tokens found.", &stats.cached_tokens);
    family("prompt_tokens_total", "counter", "Prompt tokens.", &stats.prompt_tokens);
    family("generation_tokens_total", "counter", "Output tokens.", &stats.output_tokens);
    family("request_success_total", "counter", "Requests answered whole.", &stats.completed);
    let _ = writeln!(
        text,
        "# HELP vllm:cache_config_info Cache settings.\n# TYPE vllm:cache_config_info gauge\n\
         vllm:cache_config_info{{block_size=\"{}\",num_gpu_blocks=\"{}\",enable_prefix_caching=\"True\"}} 1",
        config.block_tokens, stats.blocks_total
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_of_vllm() {
        let config = MockEngineConfig { models: vec!["a\"b".to_owned()], ..MockEngineConfig::default() };
        let stats =
            MockStats { blocks_total: 8, blocks_pinned: 2, waiting: 3, cached_tokens: 5, ..MockStats::default() };
        let text = render(&config, &stats);
        for line in [
            "vllm:num_requests_waiting{model_name=\"a\\\"b\"} 3",
            "vllm:kv_cache_usage_perc{model_name=\"a\\\"b\"} 0.25",
            "vllm:prefix_cache_hits_total{model_name=\"a\\\"b\"} 5",
            "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"8\",enable_prefix_caching=\"True\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }
}
