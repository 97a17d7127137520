//! # emberlane
//!
//! An inference-aware edge data plane: one binary in front of a fleet of LLM engine replicas that sends each request
//! where the KV cache it can reuse already is, unless waiting there costs more than computing it again.

// -- state
pub mod prefix;
// -- data
pub mod config;
pub mod parse;
// -- base
pub mod clock;
pub mod id;
pub mod reject;
pub mod sync;
