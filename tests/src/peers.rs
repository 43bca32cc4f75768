//! Starts the peers and talks to them: what integration tests and the recorder use.
//!
//! ```no_run
//! # async fn example() -> Result<(), pendguard_tests::peers::PeerError> {
//! use pendguard_tests::peers::{Client, ClientKind, ClientOptions, Source, SourceOptions};
//! use pendguard_tests::protocol::Method;
//!
//! let directory = tempfile::tempdir().expect("a directory for the socket");
//! let mut source = Source::start(&SourceOptions {
//!     pending_value: Some(42),
//!     ..SourceOptions::new(directory.path().join("source.sock"))
//! })
//! .await?;
//! let options = ClientOptions::default().env("NUMAFLOW_REPLICA", "1");
//! let mut client = Client::start(ClientKind::GrpcGo, &source.unix(), &options).await?;
//! let called = client.call(Method::PendingFn, 200).await?;
//! assert_eq!((called.ok, source.stats().await?.pending), (200, 200));
//! # Ok(())
//! # }
//! ```
//!
//! A peer that is dropped is killed, by its own process handle. A peer whose parent died ends by itself, because its
//! standard input ends. Every wait has a limit.

mod client;
pub mod locate;
mod process;
mod source;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

pub use client::{Client, ClientKind, ClientOptions};
pub use locate::{stress as stress_program, target as target_directory};
pub use source::{Source, SourceKind, SourceOptions};

use crate::protocol::Event;

/// How long a peer may take to start: more than it gives its source to become ready.
const START_LIMIT: Duration = Duration::from_secs(40);
/// How long a peer may take to end once it was told to.
const QUIT_LIMIT: Duration = Duration::from_secs(10);

/// What is the same for starting any peer.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// Variables of the process, such as `NUMAFLOW_REPLICA`. It inherits this process's environment, but none of its
    /// `NUMAFLOW_*` variables.
    pub env: BTreeMap<OsString, OsString>,
    /// A program, with arguments, that replaces itself by the peer: `["ip", "netns", "exec", "pod"]`. It must not
    /// fork, because the process that was started is the one whose pid is given and that is killed.
    pub launcher: Vec<OsString>,
}

/// Why a peer could not be started or did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Something that has to be built or installed first.
    #[error("{what} is missing: {} not found (run `cargo xtask setup`, or set {variable})", path.display())]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it was expected.
        path: PathBuf,
        /// The environment variable that names another place.
        variable: &'static str,
    },
    /// The process can't be started.
    #[error("{name}: cannot start")]
    Start {
        /// The peer.
        name: String,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The pipes to the process failed.
    #[error("{name}: cannot talk to it")]
    Pipe {
        /// The peer.
        name: String,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A line that is no event.
    #[error("{name} printed {line:?}")]
    Garbled {
        /// The peer.
        name: String,
        /// The line.
        line: String,
    },
    /// Nothing came in time.
    #[error("{name} did not answer {waiting_for:?} within {limit:?}")]
    TimedOut {
        /// The peer.
        name: String,
        /// The command, or what else was expected.
        waiting_for: String,
        /// The limit.
        limit: Duration,
    },
    /// The process ended.
    #[error("{name} ended while {waiting_for:?} was not answered")]
    Ended {
        /// The peer.
        name: String,
        /// The command, or what else was expected.
        waiting_for: String,
    },
    /// The peer says that it failed.
    #[error("{name}: {message}")]
    Failed {
        /// The peer.
        name: String,
        /// What it says.
        message: String,
    },
    /// An event that is not the answer.
    #[error("{name} answered {waiting_for:?} by {event:?}")]
    Unexpected {
        /// The peer.
        name: String,
        /// The command, or what else was expected.
        waiting_for: String,
        /// What came instead.
        event: Box<Event>,
    },
    /// The process ended, but not well.
    #[error("{name}: {status}")]
    Status {
        /// The peer.
        name: String,
        /// Its exit status.
        status: ExitStatus,
    },
}
