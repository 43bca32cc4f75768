//! Records what real clients send, as test data for the agent's parser.
//!
//! A recording comes with its ground truth: which request is on which stream. That is decoded here by a complete
//! decoder which shares no code with the agent ([`http2`]), and counted against the calls that the client reports.

pub mod capture;
pub mod convert;
pub mod fixture;
pub mod http2;
pub mod relay;
