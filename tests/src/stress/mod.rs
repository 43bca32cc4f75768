//! Connections of which both ends know every byte: what is sent depends on a number alone, which is the first thing that the
//! connection says. So whoever reads it knows at each byte whether it is the right one, and where a fault begins.
//!
//! The HTTP/2 is valid, and written as tonic writes it, but there is no gRPC behind it: the sender is in the data plane's place
//! and the reader in the source's, and they do what no gRPC library can be told to do. They send frames of any size in any
//! system call, cut anywhere; they read a few bytes at a time, and late.

pub mod pair;
pub mod reader;
pub mod script;
pub mod sender;
