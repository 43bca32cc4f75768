//! A source and its client, and what is put between or beside them while they go on.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pendguard_tests::agent::{Agent, PENDING, Pod};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};
use tempfile::TempDir;

use super::mode::Mode;
use crate::load::driver::Process;
use crate::proxies::{Kind, Proxy};

/// What the names of the agent's programs begin with.
const PROGRAMS: [&str; 8] = [
    "tap_", "fd_", "proc_", "answer_", "hold_", "edit_", "gate", "floor_",
];

/// A source and a client that is connected to it, as the replica 1 of a MonoVertex.
pub struct World {
    pub source: Process,
    pub direct: Process,
    pod: Pod,
    directory: TempDir,
}

/// What was put there.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Beside {
    Nothing,
    Empty,
    /// What it pins goes with the second, if there is one.
    Agent(Agent, Option<BpfFs>),
    /// With a client that is connected through it.
    Proxy(Kind, Proxy, Process),
}

/// Where the source listens.
fn source_socket(directory: &TempDir) -> PathBuf {
    directory.path().join("source.sock")
}

impl World {
    /// Starts them, on a node without an agent.
    pub async fn start(mode: Mode) -> Result<Self> {
        until_unloaded().await?;
        let directory = tempfile::tempdir()?;
        let pod = Pod::mono_vertex("bench", "1");
        let socket = source_socket(&directory);
        let options: &[&str] = if mode == Mode::Empty {
            &["--keep"]
        } else {
            &[]
        };
        let source = Process::start("source", &socket, options, pod.udsource()).await?;
        let direct = Process::start("client", &socket, &[], pod.numa()).await?;
        Ok(Self {
            source,
            direct,
            pod,
            directory,
        })
    }

    /// Puts it there, and waits until it does what it is to do.
    pub async fn enter(&mut self, mode: Mode) -> Result<Beside> {
        Ok(match mode {
            Mode::Control => Beside::Nothing,
            Mode::Empty => {
                self.source.empty(true).await?;
                Beside::Empty
            }
            Mode::NoAnswers | Mode::Audit => {
                let arguments: &[&str] = match mode {
                    Mode::NoAnswers => &["--no-answers"],
                    _ => &[],
                };
                let agent = Agent::start(arguments).await?;
                agent.until_watches(self.direct.pid()).await?;
                Beside::Agent(agent, None)
            }
            Mode::Gate | Mode::Rewrite | Mode::Quiet => {
                let bpffs = BpfFs::mount()?;
                let enforcer = if mode == Mode::Gate {
                    "gate"
                } else {
                    "rewrite"
                };
                let answer = if mode == Mode::Quiet {
                    "quiet"
                } else {
                    "unimplemented"
                };
                let enforce = [
                    "--mode",
                    "enforce",
                    "--enforcer",
                    enforcer,
                    "--answer",
                    answer,
                ];
                let agent = Agent::start_at(&bpffs.pins(), &enforce).await?;
                if mode == Mode::Quiet {
                    // Who a client is it says when it connects.
                    self.reconnect().await?;
                }
                agent.until_watches(self.direct.pid()).await?;
                let rejected = wait_for("calls are rejected", WAIT_LIMIT, async || {
                    self.direct.call(PENDING, Duration::ZERO, 1).await?;
                    let scrape = agent.scrape().await?;
                    let rejected = scrape.sum("pendguard_rejections_total", &[("answer", answer)]);
                    Ok((rejected > Some(0)).then_some(()))
                });
                if let Err(error) = rejected.await {
                    let scrape = agent.scrape().await?;
                    return Err(error.context(format!("{scrape:?}")));
                }
                Beside::Agent(agent, Some(bpffs))
            }
            Mode::Proxy(kind) => {
                let proxy = Proxy::start(kind, &source_socket(&self.directory)).await?;
                let client = Process::start("client", &proxy.socket(), &[], self.pod.numa()).await;
                let client = client.with_context(|| proxy.log())?;
                Beside::Proxy(kind, proxy, client)
            }
        })
    }

    /// Another client takes the place of the one that is connected to the source.
    async fn reconnect(&mut self) -> Result<()> {
        let socket = source_socket(&self.directory);
        let client = Process::start("client", &socket, &[], self.pod.numa()).await?;
        std::mem::replace(&mut self.direct, client).end().await
    }

    /// Takes it away.
    pub async fn leave(&mut self, beside: Beside) -> Result<()> {
        match beside {
            Beside::Nothing => {}
            Beside::Empty => self.source.empty(false).await?,
            Beside::Agent(agent, bpffs) => {
                agent.stop().await?;
                drop(bpffs);
            }
            Beside::Proxy(_, proxy, client) => {
                client.end().await?;
                proxy.end().await?;
            }
        }
        until_unloaded().await
    }

    /// Ends both.
    pub async fn end(self) -> Result<()> {
        self.direct.end().await?;
        self.source.end().await
    }
}

/// The kernel takes programs away a moment after the last descriptor is closed; and an agent that isn't ours would be measured, too.
async fn until_unloaded() -> Result<()> {
    let mut left = Vec::new();
    let gone = wait_for(
        "no programs of an agent's are loaded",
        WAIT_LIMIT,
        async || {
            left.clear();
            for program in aya::programs::loaded_programs() {
                // One that has just gone.
                let Ok(program) = program else { continue };
                if let Some(name) = program.name_as_str()
                    && PROGRAMS.iter().any(|begin| name.starts_with(begin))
                {
                    left.push(name.to_owned());
                }
            }
            Ok(left.is_empty().then_some(()))
        },
    )
    .await;
    gone.with_context(|| {
        format!("loaded: {left:?}; end the agent that runs, and `pendguard detach`")
    })?;
    Ok(())
}
