//! `emberlane sim --suite`: runs a suite, prints what its claims came to, and writes its page.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sha2::{Digest as _, Sha256};

use super::progress::Progress;
use super::{SimArgs, SimError, read, threads};
use crate::cli::check::LoadError;
use crate::sim::batch::Runner;
use crate::sim::suite::evidence::{self, Options};
use crate::sim::suite::{Suite, page};

/// Where results are kept between runs, and where quick pages go.
const KEPT: &str = "target/scheduling";

/// Fails when a claim failed: the page is written all the same.
pub(super) fn run(args: &SimArgs, path: &Path, runner: &dyn Runner, out: &mut dyn Write) -> Result<ExitCode, SimError> {
    let invalid = |errors| LoadError::Invalid { path: path.to_owned(), errors };
    let suite = Suite::read(&read(path)?).map_err(invalid)?;
    let options = Options {
        threads: threads(args),
        is_quick: args.quick,
        only: args.only.clone(),
        cache: PathBuf::from(KEPT),
        build: build(),
    };
    let mut progress = Progress::start(0, args.quiet);
    let mut tell = |name: &str, ended, runs, simulated| {
        progress.set_runs(runs);
        progress.look(ended, simulated, name);
    };
    let evidence = evidence::collect(&suite, &options, runner, &mut tell)?;
    progress.finish();
    let mut text = page::claims(&evidence).to_text();
    let losing = page::losing_cells(&evidence).rows.len();
    let [held, failed, untested] = page::outcomes(&evidence);
    let _ = write!(text, "\n{held} held, {failed} failed, {untested} untested; {losing} losing cells\n");
    if args.only.is_empty() {
        let name = path.file_stem().map_or_else(|| "scheduling".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let beside = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
        let directory = args.out.clone().unwrap_or_else(|| if args.quick { PathBuf::from(KEPT) } else { beside });
        evidence::write(&suite, &evidence, &directory, &name)?;
        let _ = writeln!(text, "{}", directory.join(format!("{name}.md")).display());
    }
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(SimError::Print)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What stands for the code that makes results: the program's own bytes.
fn build() -> String {
    let bytes = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
    crate::sim::suite::cache::hex(&Sha256::digest(&bytes), 16)
}
