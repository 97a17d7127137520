//! A user's own names: which metric of an engine that is not known here says what.

use std::borrow::Cow;

use super::dialect::{Figure, Fold, Rule};

/// Longest metric that is taken, label and all.
const METRIC_BYTES_MAX: usize = 512;

/// The figures a user can map, by the names they have in a configuration; those that are counters or counts add up over
/// all series, `kv_usage` is their mean.
const FIELDS: [(&str, Figure, Fold); 11] = [
    ("running", Figure::Running, Fold::Sum),
    ("waiting", Figure::Waiting, Fold::Sum),
    ("slots", Figure::Slots, Fold::Sum),
    ("kv_usage", Figure::KvUsage, Fold::Mean),
    ("kv_blocks", Figure::KvBlocks, Fold::Sum),
    ("kv_block_tokens", Figure::KvBlockTokens, Fold::Greatest),
    ("prefill_tokens", Figure::PrefillTokens, Fold::Sum),
    ("blocks_evicted", Figure::BlocksEvicted, Fold::Sum),
    ("prefix_tokens_queried", Figure::Queried, Fold::Sum),
    ("prefix_tokens_hit", Figure::Hit, Fold::Sum),
    ("started", Figure::Started, Fold::Least),
];

/// A user's names. The default maps nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomNames {
    rules: Vec<Rule>,
}

/// Why a mapping cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CustomFault {
    /// No such figure.
    #[error(
        "there is no such figure; one of running, waiting, slots, kv_usage, kv_blocks, kv_block_tokens, \
             prefill_tokens, blocks_evicted, prefix_tokens_queried, prefix_tokens_hit, started"
    )]
    Figure,
    /// Not a metric.
    #[error("expected a metric such as `my_queue` or `my_requests{{state=\"queued\"}}` (at most one label)")]
    Metric,
}

impl CustomNames {
    /// The names of the figures that can be mapped, in the order people read them.
    pub fn fields() -> impl Iterator<Item = &'static str> {
        FIELDS.iter().map(|(name, ..)| *name)
    }

    /// Maps the figure `field` to `metric`: a name, or a name and one label, `name{label="value"}`. A figure that is
    /// mapped again has several names, of which the first on the page counts.
    ///
    /// # Errors
    /// See [`CustomFault`].
    pub fn map(&mut self, field: &str, metric: &str) -> Result<(), CustomFault> {
        let found = FIELDS.iter().find(|(name, ..)| *name == field).ok_or(CustomFault::Figure)?;
        let (_, figure, fold) = *found;
        let (name, label) = parse(metric).ok_or(CustomFault::Metric)?;
        self.rules.push(Rule { name: Cow::Owned(name), label, figure, fold });
        Ok(())
    }

    /// Whether `field` is mapped.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        let figure = FIELDS.iter().find(|(name, ..)| *name == field).map(|(_, figure, _)| *figure);
        self.rules.iter().any(|rule| Some(rule.figure) == figure)
    }

    pub(crate) fn rules(&self) -> Vec<Rule> {
        self.rules.clone()
    }
}

type Label = (Cow<'static, str>, Cow<'static, str>);

fn parse(metric: &str) -> Option<(String, Option<Label>)> {
    let metric = metric.trim();
    if metric.len() > METRIC_BYTES_MAX {
        return None;
    }
    let Some((name, label)) = metric.split_once('{') else { return is_name(metric).then(|| (metric.to_owned(), None)) };
    let (key, value) = label.strip_suffix('}')?.split_once('=')?;
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    if !is_name(name) || !is_name(key.trim()) || value.contains(['"', '\\']) {
        return None;
    }
    Some((name.to_owned(), Some((Cow::Owned(key.trim().to_owned()), Cow::Owned(value.to_owned())))))
}

fn is_name(text: &str) -> bool {
    let is_first = |char: char| char.is_ascii_alphabetic() || matches!(char, '_' | ':');
    text.starts_with(is_first) && text.chars().all(|char| is_first(char) || char.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_names_with_at_most_one_label() {
        let label = |key: &'static str, value: &'static str| Some((Cow::Borrowed(key), Cow::Borrowed(value)));
        assert_eq!(parse("a:b_1"), Some(("a:b_1".to_owned(), None)));
        assert_eq!(parse(" a{b=\"c d\"} "), Some(("a".to_owned(), label("b", "c d"))));
        assert_eq!(parse("a{b=c}"), Some(("a".to_owned(), label("b", "c"))));
        for wrong in ["", "1a", "a b", "a{b}", "a{b=c", "a{b=\"c\",d=\"e\"}", "a{=c}"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn figures_are_known_by_their_names() {
        let mut names = CustomNames::default();
        assert_eq!(names.map("runing", "a"), Err(CustomFault::Figure));
        assert_eq!(names.map("running", "a b"), Err(CustomFault::Metric));
        assert!(!names.has("running"));
        assert_eq!(names.map("running", "a"), Ok(()));
        assert!(names.has("running") && !names.has("nothing"));
        let message = CustomFault::Figure.to_string();
        assert!(CustomNames::fields().all(|field| message.contains(field)));
    }
}
