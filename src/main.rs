//! The thin binary: allocator, arguments, one subcommand.

use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    emberlane::cli::Cli::parse().run()
}
