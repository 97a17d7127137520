//! What can be seen from outside: metrics, decision records, logs, and the admin listener that serves them.

pub mod admin;
pub mod log;
pub mod metrics;
pub mod process;
pub mod record;
