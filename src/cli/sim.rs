//! `emberlane sim`: plays a workload against a simulated fleet under every policy named, and shows what came of it.

mod evidence;
mod play;
mod progress;
mod tune;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::check::LoadError;
use crate::config::read::closest;
use crate::config::{ConfigError, PolicyName};
use crate::sim::batch::{self, Job, Observer, Runner};
use crate::sim::fleet;
use crate::sim::report::grid::{BOUNDS, Grid, base_name};
use crate::sim::report::{html, table};
use crate::sim::result::RunResult;
use crate::sim::scenario::{OutputFormat, Scenario, Split};
use progress::Progress;

/// Most bytes read of a scenario or suite.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Most runs at once.
const THREADS_MAX: usize = 1024;

const EXAMPLES: &str = "\
Examples:
  Coding-agent sessions on 8 replicas of an 8B model, 2 to 6 sessions a replica, three policies:
    emberlane sim --trace perf/traces/agent_sessions.jsonl.gz --replicas 8 --model llama-3.1-8b \\
      --policy price,sticky_until_saturated,least_request --load 2,4,6 --seeds 10 --html sessions.html
  A generated workload at 1.5 times its rate; one JSON object a run:
    emberlane sim --trace generate:chat --policy 'price,weighted(prefix=3,queue=5,kv=2)' --load 1.5 --json
  Half of the replicas at half the speed and with half the memory:
    emberlane sim --trace generate:chat --fleet '4*llama-3.1-8b,4*llama-3.1-8b(speed=0.5,kv_tokens=210k)'
  The same from a file, with one thing changed:
    emberlane sim --scenario chat.yaml --beacon-delay 1
  Parameters for baselines, found on the half of the trace that is kept for that:
    emberlane sim --tune --trace perf/traces/agent_sessions.jsonl.gz --policy sticky_until_saturated,chwbl --load 3,5
  The page perf/scheduling.md: its claims, figures and plots, made again:
    emberlane sim --suite perf/scheduling.yaml";

/// Simulate a fleet: the gateway's own decisions under virtual time, policies side by side.
///
/// Each policy plays the same arrivals at each load with each seed. What is printed are means over the seeds with 95 %
/// intervals and each policy's difference to `price` (or the first), paired by seed; what goes to standard output does
/// not depend on how many runs are made at once.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct SimArgs {
    /// What is asked: a trace, or `generate:NAME[,KEY=VALUE…]`.
    #[arg(long, value_name = "FILE|generate:…")]
    pub trace: Option<String>,
    /// Replicas of the fleet.
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// The model they serve.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Replicas that differ, instead of --replicas and --model: groups with what is other than the model has it, such as
    /// `4*llama-3.1-8b,4*llama-3.1-8b(speed=0.5,kv_tokens=200k)`; also `block_tokens`, `host_tier_gb`, `slots`, and
    /// `configured=false` for memory that the gateway is not told of.
    #[arg(long, value_name = "N*MODEL[(KEY=VALUE…)],…", conflicts_with_all = ["replicas", "model"])]
    pub fleet: Option<String>,
    /// Policies and bounds, split at commas outside parentheses; parameters as in `weighted(prefix=3,queue=5,kv=2)`.
    #[arg(long = "policy", value_name = "NAME[,NAME…]")]
    pub policies: Vec<String>,
    /// Sessions a replica (session traces), or multiples of the trace's own rate (timed ones).
    #[arg(long = "load", value_name = "X[,X…]", value_delimiter = ',')]
    pub loads: Vec<f64>,
    /// How many seeds.
    #[arg(long, value_name = "N")]
    pub seeds: Option<u64>,
    /// The first of them; the others follow it.
    #[arg(long, value_name = "FIRST")]
    pub seed: Option<u64>,
    /// Virtual seconds of a run, the warm-up among them.
    #[arg(long, value_name = "S")]
    pub duration: Option<f64>,
    /// Virtual seconds at its beginning that are not measured.
    #[arg(long, value_name = "S")]
    pub warm_up: Option<f64>,
    /// Seconds between two load reports of a replica.
    #[arg(long, value_name = "S")]
    pub beacon_period: Option<f64>,
    /// Seconds from when a report is made until the gateway knows it.
    #[arg(long, value_name = "S")]
    pub beacon_delay: Option<f64>,
    /// Share of the reports that are lost, 0 to 1.
    #[arg(long, value_name = "SHARE")]
    pub beacon_loss: Option<f64>,
    /// Seconds from the gateway to a replica, one way.
    #[arg(long, value_name = "S")]
    pub network_delay: Option<f64>,
    /// Host memory of a replica for blocks that its GPU evicted.
    #[arg(long, value_name = "GB")]
    pub host_tier_gb: Option<f64>,
    /// Seconds between two samples of the fleet's state, for plots over time in `--html` and series in `--json`.
    #[arg(long, value_name = "S")]
    pub history_period: Option<f64>,
    /// Something to change by name, such as `index_off`, `learning_off`, `precise` (the gateway knows what
    /// engines hold), `beacons_1s`, `beacons_lost` or `slowed` (one replica becomes twice as slow).
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// A file with these settings; flags go before it.
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// Print one JSON object a run, as they end.
    #[arg(long)]
    pub json: bool,
    /// Write a page with plots and tables.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Runs at once [default: the machine's cores].
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Say nothing of how far it is.
    #[arg(long)]
    pub quiet: bool,
    /// Which part of a trace is played: `whole`, or one of two halves, `test` and `tuning`, that have nothing in common.
    #[arg(long, value_name = "PART")]
    pub split: Option<Split>,
    /// Try each policy's own parameters on the half for tuning, and say which are best.
    #[arg(long, conflicts_with_all = ["json", "html", "split", "variant"])]
    pub tune: bool,
    /// Run the scenarios of this file, check its claims, and write its page beside it.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "trace", "replicas", "model", "fleet", "policies", "loads", "seeds", "seed", "duration", "warm_up", "beacon_period",
        "beacon_delay", "beacon_loss", "network_delay", "host_tier_gb", "history_period", "variant", "scenario", "json",
        "html", "split", "tune",
    ])]
    pub suite: Option<PathBuf>,
    /// With --suite: fewer seeds, and the page goes to target/scheduling.
    #[arg(long, requires = "suite")]
    pub quick: bool,
    /// With --suite: run these scenarios and print their claims; write no page.
    #[arg(long, value_name = "NAME[,NAME…]", value_delimiter = ',', requires = "suite")]
    pub only: Vec<String>,
    /// With --suite: where the page goes instead.
    #[arg(long, value_name = "DIRECTORY", requires = "suite")]
    pub out: Option<PathBuf>,
}

/// Runs the simulations. Exits 0 when all ran, 1 when one could not, 2 when the settings are wrong; with a suite also 1
/// when a claim failed.
#[must_use]
pub fn run(args: &SimArgs) -> ExitCode {
    run_with(args, &play::Player::default(), &mut std::io::stdout().lock())
}

fn run_with(args: &SimArgs, runner: &dyn Runner, out: &mut dyn Write) -> ExitCode {
    let done = match &args.suite {
        Some(suite) => evidence::run(args, suite, runner, out),
        None if args.tune => tune::run(args, runner, out).map(|()| ExitCode::SUCCESS),
        None => compare(args, runner, out).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        // Nowhere is left to tell of a closed stderr.
        let _ = writeln!(std::io::stderr(), "emberlane sim: {error}");
        error.exit_code()
    })
}

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimError {
    /// The file of settings is wrong.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The settings are.
    #[error("{}", .0.join("\n"))]
    Settings(Vec<String>),
    /// A run has no result, or results cannot be printed.
    #[error("{0}")]
    Batch(#[from] batch::BatchError),
    /// A suite could not be run.
    #[error("{0}")]
    Evidence(#[from] crate::sim::suite::evidence::EvidenceError),
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Standard output is closed.
    #[error("cannot print results: {0}")]
    Print(std::io::Error),
}

impl SimError {
    fn exit_code(&self) -> ExitCode {
        use crate::sim::suite::evidence::EvidenceError;
        match self {
            Self::Load(_) | Self::Settings(_) => ExitCode::from(2),
            Self::Evidence(EvidenceError::NoScenario { .. } | EvidenceError::Unfit { .. }) => ExitCode::from(2),
            Self::Evidence(EvidenceError::Batch { .. } | EvidenceError::File { .. }) => ExitCode::from(1),
            Self::Batch(_) | Self::File { .. } | Self::Print(_) => ExitCode::from(1),
        }
    }
}

fn compare(args: &SimArgs, runner: &dyn Runner, out: &mut dyn Write) -> Result<(), SimError> {
    let scenario = scenario(args)?;
    let variant = args.variant.as_deref().unwrap_or_default();
    let mut faults = scenario.faults();
    for policy in &scenario.policies {
        let fault = check_policy(policy).err().or_else(|| runner.check(&scenario, policy, variant).err());
        faults.extend(fault.filter(|fault| !faults.contains(fault)));
    }
    let lines: Vec<(&str, &str)> = scenario.policies.iter().map(|policy| (policy.as_str(), variant)).collect();
    let jobs = batch::jobs_of(&scenario, &scenario.loads, &lines);
    if jobs.len() == batch::JOBS_MAX {
        faults.push(format!("policies × loads × seeds: at most {} runs", batch::JOBS_MAX - 1));
    }
    if !faults.is_empty() {
        return Err(SimError::Settings(faults));
    }
    let is_json = args.json || (scenario.output == OutputFormat::Json && args.html.is_none());
    let mut printer = Printer {
        progress: Progress::start(jobs.len(), args.quiet),
        out,
        is_json,
        is_kept: !is_json || args.html.is_some(),
        results: Vec::new(),
    };
    batch::run_all(&scenario, &jobs, threads(args), runner, &mut printer)?;
    let Printer { progress, results, .. } = printer;
    progress.finish();
    if let Some(path) = &args.html {
        let page = html::report(&results);
        std::fs::write(path, page).map_err(|source| SimError::File { path: path.clone(), source })?;
    }
    let text = match (is_json, scenario.output) {
        (true, _) => String::new(),
        (false, OutputFormat::Html) if args.html.is_none() => html::report(&results),
        (false, _) => Grid::lay_out(&results).iter().map(table::to_text).collect::<Vec<_>>().join("\n"),
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(SimError::Print)
}

/// Prints results as they end, or keeps them for the end.
struct Printer<'o> {
    progress: Progress,
    out: &'o mut dyn Write,
    is_json: bool,
    is_kept: bool,
    results: Vec<RunResult>,
}

impl Observer for Printer<'_> {
    fn looked(&mut self, ended: usize, simulated: u64) {
        self.progress.look(ended, simulated, "");
    }

    fn ended(&mut self, _job: &Job, run: RunResult) -> std::io::Result<()> {
        if self.is_json {
            let mut line = serde_json::to_string(&run)?;
            line.push('\n');
            let out = &mut self.out;
            self.progress.suspend(|| out.write_all(line.as_bytes()).and_then(|()| out.flush()))?;
        }
        if self.is_kept {
            self.results.push(run);
        }
        Ok(())
    }
}

/// The file's settings, or the defaults, with what the flags say.
fn scenario(args: &SimArgs) -> Result<Scenario, SimError> {
    let mut scenario = match &args.scenario {
        Some(path) => {
            let invalid = |errors| LoadError::Invalid { path: path.clone(), errors };
            Scenario::read(&read(path)?).map_err(invalid)?
        }
        None => Scenario::default(),
    };
    fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
        if let Some(value) = flag {
            *field = value.clone();
        }
    }
    set(&mut scenario.trace, &args.trace);
    if args.replicas.is_some() || args.model.is_some() {
        scenario.fleet.clear();
    }
    set(&mut scenario.replicas, &args.replicas);
    set(&mut scenario.model, &args.model);
    if let Some(spec) = &args.fleet {
        let told = |errors: Vec<ConfigError>| errors.iter().map(|error| format!("--{error}")).collect();
        scenario.fleet = fleet::from_spec(spec).map_err(|errors| SimError::Settings(told(errors)))?;
        scenario.replicas = fleet::replicas(&scenario.fleet).unwrap_or_default();
    }
    set(&mut scenario.seeds, &args.seeds);
    set(&mut scenario.first_seed, &args.seed);
    set(&mut scenario.duration_s, &args.duration);
    set(&mut scenario.warm_up_s, &args.warm_up);
    set(&mut scenario.beacon_period_s, &args.beacon_period);
    set(&mut scenario.beacon_delay_s, &args.beacon_delay);
    set(&mut scenario.beacon_loss, &args.beacon_loss);
    set(&mut scenario.network_delay_s, &args.network_delay);
    set(&mut scenario.host_tier_gb, &args.host_tier_gb);
    set(&mut scenario.history_period_s, &args.history_period);
    set(&mut scenario.split, &args.split);
    if !args.policies.is_empty() {
        scenario.policies = args.policies.iter().flat_map(|list| split(list)).collect();
    }
    if !args.loads.is_empty() {
        scenario.loads.clone_from(&args.loads);
    }
    Ok(scenario)
}

fn read(path: &std::path::Path) -> Result<String, LoadError> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).and_then(|file| file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text));
    match file {
        Ok(_) => Ok(text),
        Err(source) => Err(LoadError::Unreadable { path: path.to_owned(), source }),
    }
}

/// The items of a list, split at commas outside parentheses.
fn split(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0_u32;
    for letter in list.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(item) = items.last_mut() {
            item.push(letter);
        }
    }
    items.into_iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

/// Whether a policy is known by name; its parameters are the runner's to check.
fn check_policy(policy: &str) -> Result<(), String> {
    let known: Vec<&str> = PolicyName::ALL.iter().map(|name| name.as_str()).chain(BOUNDS).collect();
    let name = base_name(policy);
    if known.contains(&name) {
        return Ok(());
    }
    let hint = closest(name, &known).map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
    Err(format!("--policy: `{name}` is no policy; known: {}{hint}", known.join(", ")))
}

fn threads(args: &SimArgs) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    args.jobs.unwrap_or_else(cores).clamp(1, THREADS_MAX)
}

#[cfg(test)]
mod tests;
