//! Tuning of baselines: each policy's own parameters are tried on a split that evidence does not use, so that what is
//! compared later is what somebody who runs that policy would have found.
//!
//! The objective is the geometric mean, over loads and seeds, of the median and the 90th percentile of TTFT: half of it
//! is what most requests see, half what the slow ones do, and each load counts alike however long its times are. The
//! grids are small and hold each policy's documented values, first; `price` is not tuned here, and runs as shipped.

use super::model::EngineModel;
use super::report::grid::base_name;
use super::report::table::{Cell, Table};
use super::result::RunResult;

/// Shorter times are alike, seconds: a TTFT of zero has no logarithm.
const TIME_MIN_S: f64 = 1e-4;
/// A pick must be better than what is documented by this share of the objective: less is chance.
const GAIN_MIN: f64 = 0.01;

/// Parameters to try for a policy in front of `engine`s, as they are written in a list of policies; what is documented is
/// first. Empty: the policy has no parameters of its own.
#[must_use]
pub fn candidates(policy: &str, engine: &EngineModel) -> Vec<String> {
    let name = base_name(policy);
    let mut specs = Vec::new();
    let mut add = |parameters: String| {
        let spec = if parameters.is_empty() { name.to_owned() } else { format!("{name}({parameters})") };
        if !specs.contains(&spec) {
            specs.push(spec);
        }
    };
    match name {
        "weighted" => {
            let weights = ["3,2,2,0", "3,3,2,0", "3,5,2,0", "3,2,2,2", "5,2,2,0", "10,2,2,0", "20,2,1,0", "20,4,1,2"];
            for weights in weights {
                let keys = ["prefix", "queue", "kv", "no_hit_lru"].into_iter().zip(weights.split(','));
                let given = keys.filter(|(key, weight)| *key != "no_hit_lru" || *weight != "0");
                add(given.map(|(key, weight)| format!("{key}={weight}")).collect::<Vec<_>>().join(","));
            }
        }
        "sticky_until_saturated" => {
            // The rate was measured on one model; its documentation says to measure it for each.
            let peak = peak_prefill_tokens_per_s(engine);
            add(String::new());
            for break_after in ["18s", "5s", "2s", "500ms"] {
                for affinity in ["0.8", "0.5"] {
                    add(format!("affinity={affinity},break_after={break_after},prefill_tokens_per_s={peak}"));
                }
            }
        }
        "chwbl" => ["", "load_factor=1.1", "load_factor=1.5", "load_factor=2", "load_factor=3", "load_factor=5"]
            .into_iter()
            .for_each(|parameters| add(parameters.to_owned())),
        "cache_aware" => {
            add(String::new());
            for threshold in ["0.1", "0.3", "0.5"] {
                for (abs, rel) in [("64", "1.5"), ("16", "1.5"), ("4", "1.5"), ("4", "1.1"), ("1", "1.1")] {
                    add(format!("cache_threshold={threshold},balance_abs_threshold={abs},balance_rel_threshold={rel}"));
                }
            }
        }
        "spill_gate" => {
            add(String::new());
            for (ratio, margin) in [("1.5", "4"), ("1.5", "2"), ("1.2", "2"), ("1.2", "1"), ("2", "8")] {
                for rate in [2_000.0, peak_prefill_tokens_per_s(engine)] {
                    add(format!("ratio={ratio},margin_min={margin},tokens_per_s={rate}"));
                }
            }
        }
        "dynamo" => {
            add(String::new());
            for (credit, scale) in
                [("1", "2"), ("1", "4"), ("1", "16"), ("2", "1"), ("2", "4"), ("2", "16"), ("0.5", "1")]
            {
                add(format!("overlap_score_credit={credit},prefill_load_scale={scale}"));
            }
        }
        "dualmap" => ["", "ttft_slo=10s", "ttft_slo=2s", "ttft_slo=1s", "ttft_slo=500ms", "ttft_slo=200ms"]
            .into_iter()
            .for_each(|parameters| add(parameters.to_owned())),
        "preble" => ["", "window=10m", "window=60s", "window=30s", "window=10s"]
            .into_iter()
            .for_each(|parameters| add(parameters.to_owned())),
        _ => {}
    }
    specs
}

/// Tokens that an engine prefills a second at best, to three digits.
fn peak_prefill_tokens_per_s(engine: &EngineModel) -> f64 {
    let tokens = f64::from(engine.step_tokens_max);
    let rate = tokens / (engine.prefill_base_s + engine.prefill_s(tokens, 0.0));
    let digits = 10_f64.powf(rate.log10().floor() - 2.0);
    (rate / digits).round() * digits
}

/// What one candidate came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The policy with its parameters.
    pub spec: String,
    /// Geometric mean of TTFT p50 over loads and seeds, seconds.
    pub ttft_p50_s: f64,
    /// The same of p90.
    pub ttft_p90_s: f64,
}

impl Score {
    /// The objective, seconds: less is better.
    #[must_use]
    pub fn objective_s(&self) -> f64 {
        (self.ttft_p50_s * self.ttft_p90_s).sqrt()
    }
}

/// The scores of `specs`, in that order; those without a result are left out.
#[must_use]
pub fn scores(specs: &[String], results: &[RunResult]) -> Vec<Score> {
    let score = |spec: &String| {
        let of: Vec<&RunResult> = results.iter().filter(|run| run.policy == *spec && run.completed > 0).collect();
        let mean_s = |time: fn(&RunResult) -> f64| {
            let logs = of.iter().map(|run| time(run).max(TIME_MIN_S).ln());
            (logs.sum::<f64>() / of.len() as f64).exp()
        };
        (!of.is_empty()).then(|| Score {
            spec: spec.clone(),
            ttft_p50_s: mean_s(|run| run.ttft_p50_s),
            ttft_p90_s: mean_s(|run| run.ttft_p90_s),
        })
    };
    specs.iter().filter_map(score).collect()
}

/// The one to take: the best, or the first (what is documented) where nothing is clearly better.
#[must_use]
pub fn pick(scores: &[Score]) -> Option<&Score> {
    let best = scores.iter().min_by(|a, b| a.objective_s().total_cmp(&b.objective_s()))?;
    let first = scores.first()?;
    Some(if best.objective_s() < first.objective_s() * (1.0 - GAIN_MIN) { best } else { first })
}

/// The scores of one policy after the other as a table, the picks marked.
#[must_use]
pub fn table(policies: &[Vec<Score>]) -> Table {
    let heading = ["policy", "TTFT p50 s", "p90 s", "of documented"];
    let mut table = Table { heading: heading.map(str::to_owned).to_vec(), rows: Vec::new(), texts: 1 };
    for scores in policies {
        let (picked, first_s) = (pick(scores), scores.first().map_or(1.0, Score::objective_s));
        for score in scores {
            let shown = [score.ttft_p50_s, score.ttft_p90_s, score.objective_s() / first_s]
                .map(|value| Cell::from(format!("{value:.3}")));
            let mut row = vec![Cell::from(score.spec.clone())];
            row.extend(shown);
            row[0].is_best = picked.is_some_and(|picked| picked.spec == score.spec);
            table.rows.push(row);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PolicyConfig, PolicyName};
    use crate::sim::report::fake;

    #[test]
    fn every_candidate_is_a_policy_and_the_first_is_as_documented() {
        for engine in &EngineModel::all() {
            for name in PolicyName::ALL {
                let specs = candidates(name.as_str(), engine);
                for spec in &specs {
                    let policy = PolicyConfig::from_spec(spec).unwrap_or_else(|errors| panic!("{spec}: {errors:?}"));
                    assert_eq!(policy.name, name);
                }
                if let Some(first) = specs.first() {
                    let documented = PolicyConfig { name, ..PolicyConfig::default() };
                    assert_eq!(PolicyConfig::from_spec(first), Ok(documented), "{first}");
                }
                let configs: Vec<_> = specs.iter().map(|spec| PolicyConfig::from_spec(spec).unwrap()).collect();
                assert!(specs.is_empty() || configs.len() >= 5, "{}: {}", name.as_str(), configs.len());
            }
        }
        assert!(
            candidates("weighted(prefix=9)", &EngineModel::all()[0]).len() >= 5,
            "of a policy with parameters, too"
        );
    }

    #[test]
    fn the_rate_is_that_of_the_model() {
        for (engine, rate) in EngineModel::all().iter().zip([41_400.0, 17_500.0, 15_300.0]) {
            let found = peak_prefill_tokens_per_s(engine);
            assert!((found / rate - 1.0_f64).abs() < 0.02, "{}: {found}", engine.name);
        }
    }

    #[test]
    fn the_best_is_picked_if_it_is_clearly_better() {
        let specs = ["a", "b", "c"].map(str::to_owned);
        let mut results = Vec::new();
        for (spec, slowness) in specs.iter().zip([1.0, 0.995, 2.0]) {
            for load in [2.0, 4.0] {
                let run = fake::run("price", "", load, 1);
                let (ttft_p50_s, ttft_p90_s) = (run.ttft_p50_s * slowness, run.ttft_p90_s);
                results.push(RunResult { policy: spec.clone(), ttft_p50_s, ttft_p90_s, ..run });
            }
        }
        let found = scores(&specs, &results);
        assert_eq!(found.len(), 3);
        assert_eq!(pick(&found).unwrap().spec, "a", "a quarter of a percent is chance");
        results.iter_mut().filter(|run| run.policy == "b").for_each(|run| run.ttft_p90_s *= 0.5);
        let found = scores(&specs, &results);
        assert_eq!(pick(&found).unwrap().spec, "b");
        let shown = table(&[found]).to_text();
        assert!(shown.lines().nth(2).unwrap().contains("b*"), "{shown}");
        assert_eq!((scores(&specs, &[]).len(), pick(&[])), (0, None));
    }
}
