//! A replica of a source: what a pod runs, as processes.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
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
    kinds: (ClientKind, SourceKind),
    directory: TempDir,
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
        Self::start_as(pod, number, client, source, None).await
    }

    /// A replica whose source, on Numaflow's SDK, has that many messages, and says how many of them are left.
    ///
    /// # Errors
    /// As of [`Replica::start`].
    pub async fn start_with_backlog(workload: &str, number: u32, total: u64) -> Result<Self> {
        let pod = Pod::mono_vertex(workload, &number.to_string());
        Self::start_in_with_backlog(pod, number, total).await
    }

    /// The same in that pod, whatever its environment says.
    ///
    /// # Errors
    /// As of [`Replica::start`].
    pub async fn start_in_with_backlog(pod: Pod, number: u32, total: u64) -> Result<Self> {
        let (client, source) = (ClientKind::Tonic, SourceKind::Rust);
        Self::start_as(pod, number, client, source, Some(total)).await
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
        Self::start_as(pod, u32::MAX, client, source, None).await
    }

    /// A replica in that pod, whatever its environment says.
    ///
    /// # Errors
    /// As of [`Replica::start`].
    pub async fn start_in(pod: Pod, number: u32) -> Result<Self> {
        let (client, source) = (ClientKind::Tonic, SourceKind::Rust);
        Self::start_as(pod, number, client, source, None).await
    }

    /// A replica whose containers run as another user than root, as most do.
    ///
    /// # Errors
    /// As of [`Replica::start`].
    pub async fn start_as_user(workload: &str, number: u32, user: u32) -> Result<Self> {
        let pod = Pod::mono_vertex(workload, &number.to_string());
        let directory = tempfile::tempdir().context("a directory for the socket")?;
        std::os::unix::fs::chown(directory.path(), Some(user), Some(user))?;
        let user = user.to_string();
        // The programs may lie where only root may look.
        let launcher: Vec<OsString> = [
            "setpriv",
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
            "--inh-caps",
            "+dac_read_search",
            "--ambient-caps",
            "+dac_read_search",
            "--",
        ]
        .map(Into::into)
        .into();
        let kinds = (ClientKind::Tonic, SourceKind::Rust);
        let mut options = source_options(&directory, kinds.1, &pod);
        options.launch.launcher.clone_from(&launcher);
        let source = Source::start(&options).await?;
        let mut options = client_options(&pod);
        options.launch.launcher = launcher;
        let client = Client::start(kinds.0, &source.unix(), &options).await?;
        Ok(Self {
            number,
            pod,
            kinds,
            source,
            client,
            directory,
        })
    }

    async fn start_as(
        pod: Pod,
        number: u32,
        client_kind: ClientKind,
        source_kind: SourceKind,
        total: Option<u64>,
    ) -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for the socket")?;
        let mut options = source_options(&directory, source_kind, &pod);
        options.total = total;
        let source = Source::start(&options).await?;
        let client = Client::start(client_kind, &source.unix(), &client_options(&pod)).await?;
        Ok(Self {
            number,
            pod,
            kinds: (client_kind, source_kind),
            source,
            client,
            directory,
        })
    }

    /// Kills the source, and starts another one in its place.
    ///
    /// # Errors
    /// It doesn't start.
    pub async fn restart_source(&mut self) -> Result<()> {
        let pid = Pid::from_raw(self.source.pid().try_into()?).context("pid 0")?;
        kill_process(pid, Signal::KILL)?;
        let options = source_options(&self.directory, self.kinds.1, &self.pod);
        // As the kubelet does when it makes a container anew: nothing of the old one is there.
        std::fs::remove_file(&options.socket)?;
        self.source = Source::start(&options).await?;
        Ok(())
    }

    /// Kills the client, and starts another one in its place.
    ///
    /// # Errors
    /// It doesn't start.
    pub async fn restart_client(&mut self) -> Result<()> {
        let target = self.source.unix();
        self.client = Client::start(self.kinds.0, &target, &client_options(&self.pod)).await?;
        Ok(())
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

/// How the source of a pod is started.
#[must_use]
pub fn source_options(directory: &TempDir, kind: SourceKind, pod: &Pod) -> SourceOptions {
    let mut options = SourceOptions {
        kind,
        ..SourceOptions::new(directory.path().join("source.sock"))
    };
    for (name, value) in pod.udsource() {
        options = options.env(name, value);
    }
    options
}

/// How the client of a pod is started.
#[must_use]
pub fn client_options(pod: &Pod) -> ClientOptions {
    let mut options = ClientOptions {
        concurrency: Some(CONCURRENCY),
        limit: LIMIT,
        ..ClientOptions::default()
    };
    for (name, value) in pod.numa() {
        options = options.env(name, value);
    }
    options
}
