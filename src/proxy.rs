//! One request at the edge, from its head to its last byte, on one core.
//!
//! `shard.rs` has the connections of one core and routes each request (`route.rs`); `exchange.rs` is one request: `body.rs`
//! reads it, the pipeline decides, `attempts.rs` tries replicas (`forward.rs` is one attempt), `relay.rs` passes the
//! answer on. What all shards share is in [`Core`].

mod access;
mod attempts;
mod body;
mod core;
mod events;
mod exchange;
mod forward;
mod headers;
mod relay;
mod respond;
mod retry;
mod route;
mod shard;
pub(crate) mod wish;

pub use self::core::{Core, Open};
pub use self::respond::Dialect;
pub use self::shard::Shard;
pub(crate) use self::shard::hear;
