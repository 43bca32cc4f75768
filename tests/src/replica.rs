//! A replica of a source: what a pod runs, as processes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::agent::{Pod, Scrape};
use crate::peers::{Client, ClientKind, ClientOptions, Source, SourceKind, SourceOptions};

/// How long a command may take: many thousand calls, beside others that do the same.
const LIMIT: Duration = Duration::from_secs(180);
/// Unary calls in flight.
const CONCURRENCY: usize = 16;

/// A replica of a MonoVertex: a pod with a source, and a client in the data plane's place.
pub struct Replica {
    /// Its number.
    pub number: u32,
    /// Who it is.
    pub pod: Pod,
    /// The container `udsource`.
    pub source: Source,
    /// The container `numa`.
    pub client: Client,
    _directory: TempDir,
}

impl Replica {
    /// Starts the source, and then the client.
    ///
    /// # Errors
    /// One of them doesn't start.
    pub async fn start(
        workload: &str,
        number: u32,
        client: ClientKind,
        source: SourceKind,
    ) -> Result<Self> {
        let pod = Pod::mono_vertex(workload, &number.to_string());
        Self::start_as(pod, number, client, source).await
    }

    /// A replica whose number is none.
    ///
    /// # Errors
    /// As of [`Replica::start`].
    pub async fn start_unknown(
        workload: &str,
        client: ClientKind,
        source: SourceKind,
    ) -> Result<Self> {
        let pod = Pod::mono_vertex(workload, "none");
        Self::start_as(pod, u32::MAX, client, source).await
    }

    async fn start_as(
        pod: Pod,
        number: u32,
        client: ClientKind,
        source: SourceKind,
    ) -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for the socket")?;
        let mut options = SourceOptions {
            kind: source,
            ..SourceOptions::new(directory.path().join("source.sock"))
        };
        for (name, value) in pod.udsource() {
            options = options.env(name, value);
        }
        let source = Source::start(&options).await?;
        let mut options = ClientOptions {
            concurrency: Some(CONCURRENCY),
            limit: LIMIT,
            ..ClientOptions::default()
        };
        for (name, value) in pod.numa() {
            options = options.env(name, value);
        }
        let client = Client::start(client, &source.unix(), &options).await?;
        Ok(Self {
            number,
            pod,
            source,
            client,
            _directory: directory,
        })
    }

    /// The verdict that the default policy gives this replica.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        if self.number == 0 {
            "admitted"
        } else {
            "would_reject"
        }
    }

    /// The calls of PendingFn that the agent counted, under that verdict.
    #[must_use]
    pub fn counted(&self, scrape: &Scrape) -> u64 {
        scrape.pending(&self.pod.name, self.verdict())
    }
}
