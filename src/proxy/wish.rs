//! What a request asks of its times, and how much it matters, as its headers say it. (The objective headers of llm-d and
//! of the Gateway API inference extension name an object of their own clusters: they say nothing here.)

use crate::pipeline::Wish;
use crate::policy::slo::Slo;
use crate::reject::Reject;
use http::HeaderMap;

/// Milliseconds to the first token, at most; first match wins. The aliases are those of llm-d and of common clients.
const TTFT_HEADERS: [&str; 3] = ["x-emberlane-slo-ttft-ms", "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"];
/// Milliseconds for each output token after it, at most.
const TPOT_HEADERS: [&str; 3] = ["x-emberlane-slo-tpot-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"];
/// A whole number; below zero, the request may be refused instead of being late.
const PRIORITY_HEADER: &str = "x-emberlane-priority";

/// Longest objective, milliseconds.
const MS_MAX: f32 = 1e9;
const MS_EXPECTED: &str = "a number of milliseconds, more than 0 and at most 1000000000";

/// Reads what `headers` say.
///
/// # Errors
/// [`Reject::Header`]: a value that is not what its header takes.
pub(super) fn read(headers: &HeaderMap) -> Result<Wish, Reject> {
    let text = |name: &'static str| headers.get(name).map(|value| (name, value.to_str().unwrap_or_default()));
    let first = |names: [&'static str; 3]| names.into_iter().find_map(text);
    from_text(first(TTFT_HEADERS), first(TPOT_HEADERS), text(PRIORITY_HEADER))
}

/// What a value is called where it is wrong, and the value.
pub(crate) type Named<'t> = Option<(&'static str, &'t str)>;

/// Reads milliseconds to the first token, milliseconds per output token, and a priority.
///
/// # Errors
/// As [`read`].
pub(crate) fn from_text(ttft: Named<'_>, tpot: Named<'_>, priority: Named<'_>) -> Result<Wish, Reject> {
    let seconds = |named: Named<'_>| named.map(|(name, text)| seconds(name, text)).transpose();
    let priority = priority.map_or(Ok(0), |(name, text)| {
        text.trim().parse().map_err(|_unreadable| Reject::Header { name, expected: "a whole number" })
    })?;
    Ok(Wish { slo: Slo { ttft_s: seconds(ttft)?, tpot_s: seconds(tpot)? }, priority })
}

fn seconds(name: &'static str, text: &str) -> Result<f32, Reject> {
    let ms = text.trim().parse::<f32>().ok().filter(|ms| *ms > 0.0 && *ms <= MS_MAX);
    ms.map(|ms| ms * 1e-3).ok_or(Reject::Header { name, expected: MS_EXPECTED })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn wish(pairs: &[(&'static str, &'static str)]) -> Result<Wish, Reject> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        read(&headers)
    }

    #[test]
    fn objectives_are_read_by_every_name_and_the_own_one_wins() {
        assert_eq!(wish(&[]), Ok(Wish::default()));
        for (ttft, tpot) in TTFT_HEADERS.into_iter().zip(TPOT_HEADERS) {
            let read = wish(&[(ttft, " 250.5 "), (tpot, "40"), (PRIORITY_HEADER, "-3")]).unwrap();
            assert!((read.slo.ttft_s.unwrap() - 0.2505).abs() < 1e-6 && (read.slo.tpot_s.unwrap() - 0.04).abs() < 1e-6);
            assert_eq!(read.priority, -3);
        }
        let both = wish(&[("x-slo-ttft-ms", "9"), ("x-emberlane-slo-ttft-ms", "1000")]).unwrap();
        assert_eq!(both.slo.ttft_s, Some(1.0));
        assert_eq!(wish(&[("x-llm-d-inference-objective", "premium")]), Ok(Wish::default()));
    }

    #[test]
    fn a_value_that_means_nothing_is_refused_by_the_name_of_its_header() {
        for (name, value) in [
            ("x-emberlane-slo-ttft-ms", "soon"),
            ("x-emberlane-slo-ttft-ms", ""),
            ("x-slo-ttft-ms", "0"),
            ("x-llm-d-slo-tpot-ms", "-5"),
            ("x-emberlane-slo-tpot-ms", "NaN"),
            ("x-emberlane-slo-tpot-ms", "inf"),
            ("x-emberlane-slo-tpot-ms", "2e9"),
            ("x-emberlane-priority", "high"),
            ("x-emberlane-priority", "1.5"),
            ("x-emberlane-priority", "99999999999"),
        ] {
            let refused = wish(&[(name, value)]).unwrap_err();
            assert_eq!(
                (refused.status(), refused.code(), refused.param()),
                (400, "invalid_header", Some(name)),
                "{value}"
            );
            assert!(refused.to_string().contains(name));
        }
    }

    #[test]
    fn whatever_a_header_says_an_objective_is_a_time() {
        bolero::check!().with_type::<String>().for_each(|text| {
            if let Ok(read) = from_text(Some(("a", text)), Some(("b", text)), Some(("c", "0"))) {
                assert!(read.slo.ttft_s.is_some_and(|seconds| seconds > 0.0 && seconds <= 1e6), "{text}");
            }
        });
    }
}
