//! Engines' metrics pages: Prometheus text → a [`Reading`], which is what a beacon says of a replica. Pure and without
//! I/O: the agent beside an engine and a gateway that reads pages itself use the same reader.
//!
//! One pass over the page, each line looked at once; no regular expressions; nothing is allocated for a line once the
//! names on the page have been seen. What an engine calls things is in tables (`dialect`). Lines that are not
//! Prometheus text are stepped over and counted; a page without the names that are needed is an error that names them
//! and says whose page it looks like.

mod custom;
mod dialect;
pub mod kv_events;
mod reading;
mod tally;
#[cfg(test)]
mod tests;
pub(crate) mod text;

pub use custom::{CustomFault, CustomNames};
pub use reading::Reading;

use dialect::{Dialect, Figure};
use tally::Tally;
use text::Kind;

/// Longest page that is read, bytes. vLLM's has about 60 kB for each engine on it.
pub const PAGE_BYTES_MAX: usize = 4 << 20;

/// An engine whose page can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Whichever of the known ones the page's names are of.
    #[default]
    Auto,
    /// vLLM.
    Vllm,
    /// SGLang, started with `--enable-metrics`.
    Sglang,
    /// TensorRT-LLM's own server, `trtllm-serve`; its page is `/prometheus/metrics`.
    Trtllm,
    /// Triton with the TensorRT-LLM backend.
    Triton,
    /// llama.cpp's server, started with `--metrics`.
    LlamaCpp,
    /// Any other, whose names a user maps.
    Custom,
}

impl Engine {
    /// All of them, in the order help shows them.
    pub const ALL: [Self; 7] =
        [Self::Auto, Self::Vllm, Self::Sglang, Self::Trtllm, Self::Triton, Self::LlamaCpp, Self::Custom];

    /// The name in configuration, on the command line and in beacons.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Trtllm => "trtllm",
            Self::Triton => "triton",
            Self::LlamaCpp => "llamacpp",
            Self::Custom => "custom",
        }
    }

    /// The engine of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.as_str() == name)
    }

    fn dialect(self, custom: &CustomNames) -> Option<Dialect> {
        match self {
            Self::Auto => None,
            Self::Vllm => Some(dialect::vllm()),
            Self::Sglang => Some(dialect::sglang()),
            Self::Trtllm => Some(dialect::trtllm()),
            Self::Triton => Some(dialect::triton()),
            Self::LlamaCpp => Some(dialect::llamacpp()),
            Self::Custom => Some(dialect::custom(custom.rules())),
        }
    }

    /// The engine whose name a metric bears.
    fn of_metric(name: &[u8]) -> Option<Self> {
        // The longest first: `nv_trt_llm_` and `trtllm_` share no beginning, but tables grow.
        let prefixes: [(&[u8], Self); 5] = [
            (b"nv_trt_llm_", Self::Triton),
            (b"llamacpp:", Self::LlamaCpp),
            (b"trtllm_", Self::Trtllm),
            (b"sglang:", Self::Sglang),
            (b"vllm:", Self::Vllm),
        ];
        prefixes.into_iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, engine)| engine)
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a page gives no reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// More than [`PAGE_BYTES_MAX`].
    #[error("the page has more than {PAGE_BYTES_MAX} bytes")]
    TooLong,
    /// Nothing on it.
    #[error("the page is empty; {}", switch_on(*engine))]
    Empty {
        /// Whose page was expected.
        engine: Engine,
    },
    /// JSON, as `trtllm-serve` answers at `/metrics`.
    #[error("the page is JSON, not Prometheus text; for trtllm-serve give http://HOST:PORT/prometheus/metrics")]
    Json,
    /// Not Prometheus text, whatever else.
    #[error("the page is not Prometheus text: not one of its {lines} lines can be read")]
    NotText {
        /// How many lines it has.
        lines: u32,
    },
    /// Prometheus text, of no engine that is known.
    #[error(
        "the page has no metric of a known engine (vllm:, sglang:, trtllm_, nv_trt_llm_, llamacpp:); map its names \
             with `engine: custom`"
    )]
    Unknown,
    /// Names are missing.
    #[error("the page lacks {}{}", missing.join(" and "), likeness(*engine, *looks_like))]
    Missing {
        /// Whose page was expected.
        engine: Engine,
        /// Metrics that are needed and not there.
        missing: Vec<String>,
        /// Whose page it looks like.
        looks_like: Option<Engine>,
    },
}

/// What makes an engine show its metrics.
const fn switch_on(engine: Engine) -> &'static str {
    match engine {
        Engine::Sglang => "start SGLang with --enable-metrics",
        Engine::LlamaCpp => "start llama.cpp's server with --metrics",
        Engine::Trtllm => "start trtllm-serve with return_perf_metrics and enable_iter_perf_stats",
        Engine::Auto | Engine::Vllm | Engine::Triton | Engine::Custom => "is that the metrics page?",
    }
}

fn likeness(engine: Engine, looks_like: Option<Engine>) -> String {
    match looks_like {
        Some(other) if other != engine => format!("; it looks like {other}'s, not {engine}'s"),
        Some(_) => format!("; it is {engine}'s, of a version that names them otherwise?"),
        None => format!("; it does not look like {engine}'s"),
    }
}

/// Reads pages of one engine. Keeps what it allocates from page to page.
#[derive(Debug)]
pub struct Reader {
    engine: Engine,
    custom: CustomNames,
    /// What was recognised or said, and its tables.
    current: Option<(Engine, Dialect)>,
    tally: Tally,
    reading: Reading,
}

impl Reader {
    /// A reader of `engine`'s pages; `custom` is looked at for [`Engine::Custom`] only.
    #[must_use]
    pub fn new(engine: Engine, custom: CustomNames) -> Self {
        let current = engine.dialect(&custom).map(|dialect| (engine, dialect));
        Self { engine, custom, current, tally: Tally::default(), reading: Reading::new(engine) }
    }

    /// Reads a page.
    ///
    /// # Errors
    /// It gives no reading: see [`PageFault`].
    pub fn read(&mut self, page: &[u8]) -> Result<&Reading, PageFault> {
        if page.len() > PAGE_BYTES_MAX {
            return Err(PageFault::TooLong);
        }
        if self.engine == Engine::Auto && self.current.is_none() {
            let engine = recognise(page).ok_or_else(|| without_samples(page, Engine::Auto, PageFault::Unknown))?;
            self.current = engine.dialect(&self.custom).map(|dialect| (engine, dialect));
        }
        let Some((engine, dialect)) = &self.current else { return Err(PageFault::Unknown) };
        let engine = *engine;
        let has_own_names = self.tally.take(page, dialect);
        let missing: Vec<Figure> = if dialect.is_lazy && has_own_names {
            Vec::new()
        } else {
            dialect.needed.iter().copied().filter(|figure| !self.tally.has(*figure)).collect()
        };
        if !missing.is_empty() {
            let missing = missing.iter().flat_map(|figure| names_of(dialect, *figure)).collect();
            let fault = PageFault::Missing { engine, missing, looks_like: recognise(page) };
            if self.engine == Engine::Auto {
                self.current = None; // another engine may have taken the address
            }
            return Err(without_samples(page, engine, fault));
        }
        self.tally.fill(engine, &mut self.reading);
        Ok(&self.reading)
    }
}

/// The names under which a page may tell a figure, those of old versions left out.
fn names_of(dialect: &Dialect, figure: Figure) -> Option<String> {
    let rule = dialect.rules.iter().find(|rule| rule.figure == figure);
    let Some(rule) = rule else { return Some(format!("a mapping of {}", format!("{figure:?}").to_lowercase())) };
    Some(match &rule.label {
        Some((key, value)) => format!("`{}{{{key}=\"{value}\"}}`", rule.name),
        None => format!("`{}`", rule.name),
    })
}

/// Whose page it is, by the first name that tells.
#[must_use]
pub fn recognise(page: &[u8]) -> Option<Engine> {
    text::lines(page).find_map(|kind| match kind {
        Kind::Sample(line) => Engine::of_metric(line.name),
        Kind::Blank | Kind::Broken => None,
    })
}

/// What is wrong with a page without a single sample; `otherwise` if it has some.
fn without_samples(page: &[u8], engine: Engine, otherwise: PageFault) -> PageFault {
    let mut broken = 0_u32;
    for kind in text::lines(page) {
        match kind {
            Kind::Blank => {}
            Kind::Broken => broken = broken.saturating_add(1),
            Kind::Sample(line) if line.parts().is_some() => return otherwise,
            Kind::Sample(_) => broken = broken.saturating_add(1),
        }
    }
    match page.trim_ascii().first() {
        None => PageFault::Empty { engine },
        Some(b'{' | b'[') => PageFault::Json,
        Some(_) if broken == 0 => PageFault::Empty { engine },
        Some(_) => PageFault::NotText { lines: broken },
    }
}
