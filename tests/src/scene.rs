//! What there is to see on the dashboard: workloads whose replicas all ask, an agent beside them, and a Prometheus that scrapes it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::accounting::Accounting;
use crate::agent::Agent;
use crate::bpffs::BpfFs;
use crate::enforcing::{intact, set_mode};
use crate::prometheus::Prometheus;
use crate::replica::Replica;
use crate::wait::wait_for;

/// Messages a second that each replica reads and acknowledges.
const RATE: u64 = 100;
/// Messages that each source has to begin with.
pub const BACKLOG: u64 = 100_000;

/// How long the agent may take to load what enforcement needs.
const SWITCH_LIMIT: Duration = Duration::from_secs(90);

/// A MonoVertex.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// How many replicas it has.
    pub replicas: u32,
    /// How often each of them asks.
    pub every: Duration,
}

/// All of it, running. What is first ends first.
pub struct Scene {
    /// Scrapes the agent.
    pub prometheus: Prometheus,
    /// Replicas of all workloads.
    pub replicas: Vec<Replica>,
    /// Audits, to begin with.
    pub agent: Agent,
    _accounting: Accounting,
    _bpffs: BpfFs,
}

impl Scene {
    /// Starts it: the agent, the replicas, and then a Prometheus with these rules.
    ///
    /// # Errors
    /// Something doesn't start.
    pub async fn start(workloads: &[Workload], rules: &Path) -> Result<Self> {
        let bpffs = BpfFs::mount()?;
        let agent = Agent::start_at(&bpffs.pins(), &[]).await?;
        Self::around(agent, bpffs, workloads, rules, async |name, number| {
            Replica::start_with_backlog(name, number, BACKLOG).await
        })
        .await
    }

    /// The same around an agent that runs already, with its pins in that file system; `start` starts a workload's replica of a number,
    /// with messages ([`BACKLOG`]).
    ///
    /// # Errors
    /// Something doesn't start.
    pub async fn around(
        agent: Agent,
        bpffs: BpfFs,
        workloads: &[Workload],
        rules: &Path,
        mut start: impl AsyncFnMut(&'static str, u32) -> Result<Replica>,
    ) -> Result<Self> {
        let accounting = Accounting::on()?;
        let prometheus = Prometheus::start(agent.metrics_address(), rules).await?;
        let mut replicas = Vec::new();
        for workload in workloads {
            for number in 0..workload.replicas {
                let mut replica = start(workload.name, number).await?;
                replica.client.background_on(RATE).await?;
                replica.client.every(workload.every).await?;
                replicas.push(replica);
            }
        }
        Ok(Self {
            prometheus,
            replicas,
            agent,
            _accounting: accounting,
            _bpffs: bpffs,
        })
    }

    /// Switches to enforcement at run time, and waits until calls of every replica but 0 have been rejected.
    ///
    /// # Errors
    /// They are not.
    pub async fn enforce(&self) -> Result<()> {
        // Where loading the programs takes longer than the command waits, it goes on; to set a mode twice is to set it once.
        let mut last = Ok(());
        wait_for("mode enforce", SWITCH_LIMIT, async || {
            last = set_mode(&self.agent, "enforce").await;
            Ok(last.is_ok().then_some(()))
        })
        .await
        .with_context(|| format!("{last:?}"))?;
        let mut seen = None;
        wait_for(
            "calls of all replicas but 0 are rejected",
            SWITCH_LIMIT,
            async || {
                // While it loaded programs the agent answered no scrape, and those that Prometheus has given up may be in its way still.
                let Ok(scrape) = self.agent.scrape().await else {
                    return Ok(None);
                };
                let all = self
                    .replicas
                    .iter()
                    .filter(|replica| replica.number != 0)
                    .all(|replica| scrape.pending(&replica.pod.name, "rejected") > 0);
                seen = Some(scrape);
                Ok(all.then_some(()))
            },
        )
        .await
        .with_context(|| format!("the last scrape: {seen:?}"))
    }

    /// Ends it. Nothing of the messages may have been harmed.
    ///
    /// # Errors
    /// Something was.
    pub async fn end(mut self) -> Result<()> {
        for replica in &mut self.replicas {
            replica.client.every_off().await?;
            intact(replica).await?;
        }
        self.prometheus.stop().await?;
        self.agent.stop().await?;
        Ok(())
    }
}
