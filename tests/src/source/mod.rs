//! A Numaflow source on the real SDK, whose messages prove their integrity and whose handlers count.

pub mod generator;
pub mod sdk;
pub mod tcp;
