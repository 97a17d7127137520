//! Kernel bypass: beacons go from the network driver straight into our memory (AF_XDP), past the kernel's network stack.
//!
//! ```text
//! driver -> XDP program -+- UDP to the beacon port -> AF_XDP socket of the receive queue -> `frame::parse`
//!                        +- anything else ---------> the kernel, as ever
//! ```
//!
//! A beacon then costs its receiver a fifth to a tenth of the CPU time; what the kernel does before, in soft interrupts,
//! shrinks less (rows `receive/*` of the bench tell both). No compiler, no library: the program is put together here
//! (`program`), the rest is bpf(2) and the ring buffers of AF_XDP. What the kernel knows of packets it never sees: its
//! firewall does not see beacons (their keys authenticate them), and its checks of them are made in `frame`.
//!
//! Needs `CAP_NET_ADMIN`, `CAP_BPF` and `CAP_NET_RAW`. However the process ends, the kernel then detaches the program.

pub mod frame;
pub mod interface;
mod link;
mod program;
mod ring;
mod socket;
mod sys;

pub use interface::Interface;
pub(super) use link::{Attachment, attach, open_sockets};
pub use link::{BypassFault, Hook};
pub(super) use socket::{Statistics, XdpSocket};
