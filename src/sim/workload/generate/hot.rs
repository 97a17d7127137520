//! Prefixes that become hot: a document in the news. One replica cannot serve them all; when they cool, one is enough.

use super::super::argument::{ArgumentFault, Arguments};
use super::super::{HotPrefixes, Segment};
use super::draw::Arrivals;
use super::{Call, Groups, KINDS, Maker, SECONDS, Script};

/// The class of requests for the prefixes that are hot at some time.
const HOT: u8 = 1;

/// [`Groups`], of which the most popular ones get `boost` times their requests for a while; the others keep theirs.
///
/// With the defaults, each prefix gets one request a second and the hot one 20 while it is hot: more than one replica of
/// an 8B model on H100 decodes at contexts of 6,500 tokens (13 a second when its memory is full).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hot {
    /// What [`Groups`] takes. Defaults here: `groups` 48, `rate` 48.
    pub groups: Groups,
    /// `hot`: how many become hot. Default 1.
    pub hot: u32,
    /// `boost`: requests for each while it is hot, as a multiple of before. Default 20.
    pub boost: f64,
    /// `from`: when they become hot, seconds. Default 600.
    pub from_s: f64,
    /// `until`: when they cool, seconds. Default 1,200.
    pub until_s: f64,
}

impl Default for Hot {
    fn default() -> Self {
        let arrivals = Arrivals { rate_per_s: 48.0, cv: 1.0, duration_s: 1800.0 };
        let groups = Groups { groups: 48, arrivals, ..Groups::default() };
        Self { groups, hot: 1, boost: 20.0, from_s: 600.0, until_s: 1200.0 }
    }
}

impl Hot {
    pub(super) fn read(arguments: &mut Arguments<'_>) -> Self {
        let default = Self::default();
        let hot = Self {
            groups: default.groups.changed(arguments),
            hot: arguments.count("hot", default.hot, &KINDS),
            boost: arguments.number("boost", default.boost, &(1.0..=100_000.0)),
            from_s: arguments.number("from", default.from_s, &SECONDS),
            until_s: arguments.number("until", default.until_s, &SECONDS),
        };
        if hot.from_s >= hot.until_s {
            arguments.fail(ArgumentFault::Order("from", "until"));
        }
        if hot.hot > hot.groups.groups {
            arguments.fail(ArgumentFault::Order("hot", "groups + 1"));
        }
        let extra = hot.extra(hot.hot_share());
        let duration_s = hot.until_s - hot.from_s;
        Arrivals { duration_s, ..extra }.check(arguments, 1.0, 2.0);
        hot
    }

    /// The share of all requests that the hot prefixes get when they are not hot.
    fn hot_share(&self) -> f64 {
        let weight = |rank: u32| f64::from(rank).powf(-self.groups.zipf);
        let hot: f64 = (1..=self.hot.min(self.groups.groups)).map(weight).sum();
        let all: f64 = (1..=self.groups.groups).map(weight).sum();
        hot / all
    }

    /// What comes on top while they are hot.
    fn extra(&self, hot_share: f64) -> Arrivals {
        let usual = self.groups.arrivals;
        Arrivals { rate_per_s: usual.rate_per_s * hot_share * (self.boost - 1.0), ..usual }
    }

    /// The hot ones: the first segments that are made.
    pub(super) fn prefixes(&self) -> HotPrefixes {
        let tokens = self.groups.prefix_tokens;
        let prefixes = (1..=u64::from(self.hot)).map(|id| Segment { id, tokens }).collect();
        HotPrefixes { prefixes, from_s: self.from_s, until_s: self.until_s }
    }

    pub(super) fn scripts(&self, maker: &mut Maker) -> Vec<Script> {
        let first_id = maker.ids + 1;
        let last_hot_id = first_id + u64::from(self.hot) - 1;
        let mut scripts = self.groups.scripts(maker);
        for call in scripts.iter_mut().flat_map(|script| &mut script.calls) {
            if call.prompt.first().is_some_and(|prefix| prefix.id <= last_hot_id) {
                call.class = HOT;
            }
        }
        let extra = self.extra(self.hot_share());
        if extra.rate_per_s <= 0.0 {
            return scripts;
        }
        let popularity = super::draw::Popularity::new(self.hot, self.groups.zipf);
        let until_s = self.until_s.min(self.groups.arrivals.duration_s);
        for at_s in extra.times_s(&mut maker.draw, self.from_s, until_s) {
            let place = maker.draw.place(&popularity);
            let id = first_id + u64::try_from(place).unwrap_or_default();
            let prefix = Segment { id, tokens: self.groups.prefix_tokens };
            let call = Call { class: HOT, ..self.groups.question(prefix, maker) };
            scripts.push(Script { at_s, calls: Box::new([call]) });
        }
        scripts
    }
}
