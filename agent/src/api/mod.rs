//! The gRPC API of the agent, on a Unix socket: what it serves, and how the command line asks it.
#![forbid(unsafe_code)]

pub mod client;
mod convert;
mod health;
pub mod server;
mod service;
pub mod socket;
mod watch;

/// `pendguard.v1`, generated from `proto/pendguard/v1/agent.proto`.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod pb {
    tonic::include_proto!("pendguard.v1");

    /// Its descriptors, for the reflection service.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("pendguard.v1");
}

pub use service::About;
