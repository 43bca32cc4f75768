//! A gRPC client that behaves like Numaflow's Rust data plane: tonic, and one connection for everything.

pub mod background;
pub mod calls;
pub mod connect;
pub mod session;
