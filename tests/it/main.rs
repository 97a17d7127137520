//! Integration tests: the `emberlane` binary as its users meet it, over real sockets, before scripted backends, mock
//! engines and real llama.cpp servers. One binary, so that it links once; `support` holds what the tests share.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests fail by panicking")]

mod agent;
mod bad_input;
mod beacon_format;
mod beacons;
mod body;
mod bypass;
mod calibration;
mod cli;
mod connections;
mod discovery;
mod ejection;
mod engines;
mod framing;
mod health;
mod objectives;
mod passthrough;
mod placement;
mod plane;
mod recorded;
mod reload;
mod residency;
mod resources;
mod sdk;
mod seeing;
mod slots;
mod slotted_engines;
mod slotted_fleet;
mod streaming;
mod support;
mod tidy;
mod upstream;
mod waiting;
