//! The Pendguard agent: discovery → inventory → policy → tap, and what people and machines read from it.
//!
//! Everything the binary does is in here, so that tests reach it; `main.rs` only says in which order.

pub mod announce;
pub mod api;
pub mod calls;
pub mod cli;
pub mod commands;
pub mod config;
pub mod discovery;
pub mod durations;
pub mod enforce;
pub mod engine;
pub mod errors;
pub mod export;
pub mod host;
pub mod inventory;
pub mod logging;
pub mod memory;
pub mod model;
pub mod observer;
pub mod policy;
pub mod quiet;
pub mod run;
pub mod settings;
pub mod tap;
pub mod version;
pub mod watch;
