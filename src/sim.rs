//! The simulator: the production decide and state layers under virtual time, in front of simulated engines.
//!
//! [`workload`] says what is asked, [`engine`] how a replica computes it, [`run`] plays one run of a policy at a load
//! with a seed, and [`result`] is what a run measured. Nothing here reads a clock: a run is the same each time.
//! [`batch`] plays many runs, [`report`] shows what came of them, and [`suite`] is a page of evidence made from both.

pub mod batch;
pub mod cache;
pub mod engine;
pub mod fleet;
mod memory;
pub mod model;
pub mod report;
pub mod result;
pub mod run;
pub mod scenario;
pub mod slots;
pub mod suite;
pub mod tune;
pub mod workload;
