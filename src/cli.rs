//! The command line: one module a subcommand.

pub mod check;
pub mod demo;
pub mod mock_engine;
