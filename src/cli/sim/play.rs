//! What plays a run for the command line.

use std::sync::atomic::AtomicU64;

use crate::sim::batch::{Job, Runner};
use crate::sim::result::RunResult;
use crate::sim::scenario::Scenario;

/// Plays runs with the production policies and the simulated engines.
#[derive(Debug)]
pub(crate) struct Player;

/// Said while the event loop is not part of the build.
const ABSENT: &str = "this build has no event loop to play runs with";

impl Runner for Player {
    fn check(&self, _scenario: &Scenario, _policy: &str, _variant: &str) -> Result<(), String> {
        Err(ABSENT.to_owned())
    }

    fn run(&self, _scenario: &Scenario, _job: &Job, _simulated: &AtomicU64) -> Result<RunResult, String> {
        Err(ABSENT.to_owned())
    }
}
