//! # emberlane
//!
//! An inference-aware edge data plane: one binary in front of a fleet of LLM engine replicas that sends each request
//! where the KV cache it can reuse already is, unless waiting there costs more than computing it again.
//!
//! ## The life of a request
//! accept → read the body once (`proxy::body`) → **parse** ([`parse`]) → **fingerprint** ([`prefix::hash`]) → **price**
//! every replica of the pool ([`policy`], over [`prefix::index`], [`load`], [`health`] and [`learn`]) → **pick**, with
//! the reasons on record → forward the client's own bytes (`proxy::forward`) → relay the answer unbuffered
//! (`proxy::relay`) → **learn** from it. [`pipeline`] holds the bold steps in that order: read it next.
//!
//! ## How load is known
//! Beside each engine the [`agent`] reads its metrics page ([`engine`]) and sends beacons ([`wire::beacon`] is their
//! specification). The gateway receives them past the kernel or through sockets ([`load::receive`]), believes those that
//! the gate lets through ([`load::gate`]), forgets the prefixes of an engine that restarted, moves its health
//! ([`health`]), and passes the load over a ring ([`load::ring`]) to every shard, which folds it into columns of its own
//! ([`load::columns`]). `gateway::ingest` is that order. Where replicas come from is merged in [`discovery`].
//!
//! ## Layers
//! A layer imports only from those below it; `tests/tidy.rs` holds it to that.
//!
//! | layer  | modules | rule |
//! |--------|---------|------|
//! | edge   | [`cli`], [`demo`], [`mock`], [`gateway`], [`admin`], [`proxy`], [`agent`], [`telemetry`], [`sim`] | all sockets, tasks and clock reads |
//! | decide | [`pipeline`], [`policy`], [`learn`] | no I/O; `now` and randomness are arguments |
//! | state  | [`prefix`], [`discovery`], [`fleet`], [`load`], [`health`] | many readers; fixed memory |
//! | data   | [`parse`], [`wire`], [`config`], [`engine`] | pure; parse, don't validate |
//! | base   | [`id`], [`reject`], [`clock`], [`sync`] | |
//!
//! ## Invariants
//! - The forwarded body is the client's bytes; only a configured model name is ever rewritten.
//! - Every queue, buffer, map and loop has a bound; the decision never waits for a lock another thread holds, and
//!   allocates nothing in steady state.
//! - In-flight counts are guards ([`load::Flight`]): they return to zero however a request ends.
//! - Nothing a request put on record stays there if the request failed.
//! - `unsafe` code is only in the hash kernels, in [`sync`]'s memory, and where beacons are received (`load::udp`,
//!   [`load::xdp`]), each behind a safe interface with an oracle or a test against the real kernel.

// -- edge: sockets, tasks, clock reads
pub mod admin;
pub mod agent;
pub mod cli;
pub mod demo;
pub mod gateway;
pub mod mock;
pub mod proxy;
pub mod sim;
pub mod telemetry;
// -- decide: no I/O, `now` is an argument
pub mod admission;
pub mod learn;
pub mod pipeline;
pub mod policy;
// -- state: many readers, fixed memory
pub mod discovery;
pub mod fleet;
pub mod health;
pub mod load;
pub mod prefix;
// -- data: pure
pub mod config;
pub mod engine;
pub mod parse;
pub mod wire;
// -- base
pub mod clock;
pub mod id;
pub mod reject;
pub mod sync;
