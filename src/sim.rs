//! The simulator: the production decide and state layers under virtual time, in front of simulated engines.
//!
//! [`workload`] says what is asked, [`engine`] how a replica computes it, [`run`] plays one run of a policy at a load
//! with a seed, and [`result`] is what a run measured. Nothing here reads a clock: a run is the same each time.

pub mod result;
pub mod slots;
pub mod workload;
