//! The real peers of the agent's tests: Numaflow sources on four gRPC servers, gRPC clients in four languages that
//! behave like Numaflow's data plane, and a recorder of what those clients put on the wire.
//!
//! Nothing here imitates HTTP/2 or gRPC: each peer uses the transport of its own language, because the agent has
//! to understand all of them. What they have in common is the [line protocol](protocol) on standard input and
//! output, so that one wrapper ([`peers`]) drives them all, and the [payload](payload), which proves that no byte of
//! the traffic was lost, changed, doubled or reordered.

#![deny(unsafe_code)]

pub mod accounting;
pub mod agent;
pub mod bpffs;
pub mod cgroups;
pub mod client;
pub mod dashboard;
pub mod deployment;
pub mod enforcing;
pub mod faults;
pub mod floor;
pub mod frames;
pub mod kernel;
pub mod lines;
pub mod member;
pub mod payload;
pub mod peers;
pub mod pictures;
pub mod privileges;
pub mod prometheus;
pub mod promql;
pub mod proto;
pub mod protocol;
pub mod raw;
pub mod record;
pub mod replica;
pub mod scale;
pub mod scene;
pub mod source;
pub mod splitmix;
pub mod stress;
pub mod terminal;
pub mod tls;
pub mod tracer;
pub mod wait;
pub mod watch;
