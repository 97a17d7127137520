//! What can be seen from outside: metrics, decision records and logs.

pub mod load;
pub mod log;
pub mod metrics;
pub mod process;
pub mod record;
