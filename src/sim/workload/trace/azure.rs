//! Azure's LLM inference traces (github.com/Azure/AzurePublicDataset, CC-BY-4.0): CSV with a header, one request a line:
//! `TIMESTAMP,ContextTokens,GeneratedTokens`. They do not say what prompts have in common: each prompt is new, but for a
//! system prompt whose length the caller may give.

use std::io::BufRead;

use chrono::NaiveDateTime;

use super::super::{Pace, Script, Segment, Workload};
use super::lines::Lines;
use super::{Kept, LineFault, input, lone, output};

const EXPECTED: &str = "2023-11-16 18:15:46.6805900,374,44";
const HEADER: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];
/// The id of the system prompt; fresh prompts follow it.
const SYSTEM_ID: u64 = 1;

/// Where the three columns are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns([usize; 3]);

impl Columns {
    /// Reads a header; `None` if it is none of this trace.
    pub(super) fn of_header(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let place = |name: &str| line.split(',').position(|column| column.trim().eq_ignore_ascii_case(name));
        let [time, context, generated] = HEADER.map(place);
        Some(Self([time?, context?, generated?]))
    }

    /// Those columns of a line.
    fn of<'l>(&self, line: &'l str) -> Option<[&'l str; 3]> {
        let [time, context, generated] = self.0.map(|place| line.split(',').nth(place).map(str::trim));
        Some([time?, context?, generated?])
    }
}

pub(super) fn read(
    lines: &mut Lines<impl BufRead>,
    name: String,
    columns: Columns,
    system_tokens: u32,
) -> Result<Workload, LineFault> {
    let mut kept = Kept::default();
    let mut requests: Vec<(NaiveDateTime, u32, u32)> = Vec::new();
    while let Some(line) = lines.next()? {
        kept.add(2)?;
        let wrong = || LineFault::Csv { expected: EXPECTED, found: String::from_utf8_lossy(line).into_owned() };
        let [time, context, generated] =
            std::str::from_utf8(line).ok().and_then(|line| columns.of(line)).ok_or_else(wrong)?;
        let time = moment(time).ok_or_else(wrong)?;
        let count = |text: &str| text.parse::<u64>().ok();
        let context = count(context).ok_or_else(wrong)?;
        let generated = count(generated).ok_or_else(wrong)?;
        requests.push((time, input(context)?, output(generated)?));
    }
    requests.sort_by_key(|(time, _, _)| *time);
    let begin = requests.first().map(|(time, _, _)| *time).unwrap_or_default();
    let mut id = SYSTEM_ID;
    let scripts = requests.into_iter().map(|(time, context, generated)| {
        id += 1;
        let prompt = match context.checked_sub(system_tokens) {
            Some(rest) if rest > 0 && system_tokens > 0 => {
                vec![Segment { id: SYSTEM_ID, tokens: system_tokens }, Segment { id, tokens: rest }]
            }
            // Too short to have begun with it, or there is none.
            Some(_) | None => vec![Segment { id, tokens: context }],
        };
        let at_s = (time - begin).as_seconds_f64();
        Script { at_s, calls: Box::new([lone(prompt, generated)]) }
    });
    let scripts = scripts.collect();
    Ok(Workload { name, pace: Pace::Timed, classes: vec!["all".to_owned()], scripts, hot: None })
}

/// `2023-11-16 18:15:46.6805900`, or with `T` and a zone of UTC as in later traces.
fn moment(text: &str) -> Option<NaiveDateTime> {
    let text = text.strip_suffix("+00:00").or_else(|| text.strip_suffix('Z')).unwrap_or(text);
    let read = |format| NaiveDateTime::parse_from_str(text, format).ok();
    read("%Y-%m-%d %H:%M:%S%.f").or_else(|| read("%Y-%m-%dT%H:%M:%S%.f"))
}
