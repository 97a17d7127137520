//! Formats that cross the wire between agents, engines and gateways.

pub mod beacon;
pub mod key;
