//! Enforcement, as far as it happens in user space.
//!
//! | module | what it does |
//! |---|---|
//! | [`gate`] | puts the gate before connections: when it is safe, and why not otherwise |
//! | [`rewrite`] | says which descriptors of a process are sockets |
//! | [`peer`] | finds the source's end of a connection, across network namespaces |
//! | [`pins`] | what stays in the kernel when the agent goes |
//! | `btf` | where the kernel keeps what the gate must know of a buffer |
//! | [`old`] | what an agent of another build left there |
//! | [`detach`] | takes everything away |
//! | [`kernels`] | on which kernels the gate would not be safe |
//!
//! Which of the two enforcers there is, is chosen once ([`Enforcement::kind`]).
//!
//! Nothing of it is set up before some replica's calls are to be rejected. From then on programs, maps and links are pinned: a
//! killed agent, a restart or an upgrade is no gap. What ends it are a change of mode, the lease, which a living agent
//! renews, and `pendguard detach`.

mod btf;
pub mod detach;
pub mod gate;
pub mod kernels;
pub mod old;
pub mod peer;
pub mod pins;
pub mod rewrite;

use std::cell::OnceCell;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent_common::abi::{ConnKey, Control, FOREIGN, Slot, Tracked, verdict};
use aya::maps::{HashMap, MapData};

use self::gate::Gate;
use self::old::Old;
use self::pins::{PinError, Pins};
use self::rewrite::Rewrite;
use crate::cli;
use crate::tap::counters::MappedArray;
use crate::tap::hooks::Kind;
use crate::tap::{self, Connections, Enforcer, EnforcerError, Sights, Tap, TapError, Targets};

/// How long the programs take it that an agent is there, after its last sign of life.
const ATTENDED: Duration = Duration::from_secs(120);

/// What enforcement is asked to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything is pinned.
    pub pin_dir: PathBuf,
    /// How long it goes on without an agent.
    pub lease: Duration,
    /// What is watched.
    pub sights: Sights,
    /// How sends are to be observed.
    pub tap: cli::Tap,
    /// How calls are to be rejected.
    pub enforcer: cli::Enforcer,
}

/// Why nothing can be enforced.
#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    /// The kernel.
    #[error("{0}")]
    Kernel(String),
    /// Pinning.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The enforcer.
    #[error(transparent)]
    Enforcer(#[from] EnforcerError),
    /// What was found pinned.
    #[error("what is pinned can't be taken over: {0}; `pendguard detach` removes it")]
    Found(#[source] TapError),
}

/// Why the tap that was asked for can't be had. Nobody gets another one without noticing.
#[derive(Debug, thiserror::Error)]
#[error(
    "tap fentry is asked for, and this kernel refuses it: {0}; with tap auto the agent uses tracepoints"
)]
pub struct NoFentry(String);

/// Why connections are not enforced, by connection: the agent's notes for the programs.
pub type Obstacles = HashMap<MapData, ConnKey, u32>;

/// The tap's maps that an enforcer looks at.
pub struct View<'a> {
    /// Watched processes.
    pub targets: &'a Targets,
    /// Tracked connections.
    pub connections: &'a Connections,
    /// Counters, with the mark of the hold.
    pub slots: &'a MappedArray<Slot>,
}

/// The enforcer that is set up.
enum Active {
    Gate(Gate),
    Rewrite(Rewrite),
}

impl Active {
    fn name(&self) -> &'static str {
        match self {
            Self::Gate(_) => Enforcer::Gate.name(),
            Self::Rewrite(_) => Enforcer::Rewrite.name(),
        }
    }
}

/// Enforcement on this node.
pub struct Enforcement {
    plan: Plan,
    tap: Kind,
    /// What it is or would be.
    chosen: OnceCell<Result<Enforcer, String>>,
    pins: Option<Pins>,
    active: Option<Active>,
    old: Vec<Old>,
    adopted: bool,
}

impl Enforcement {
    /// Looks at what is pinned, and takes over what an agent of this build left, or makes a tap of its own.
    pub fn begin(plan: Plan) -> anyhow::Result<(Self, Tap)> {
        let mut this = Self {
            tap: choose_tap(plan.tap)?,
            chosen: OnceCell::new(),
            plan,
            pins: None,
            active: None,
            old: Vec::new(),
            adopted: false,
        };
        // Without a pin directory nothing was ever pinned, and nothing is to be made for an audit.
        if pins::is_bpffs(&this.plan.pin_dir) && this.plan.pin_dir.is_dir() {
            match this.take() {
                // Whoever made it keeps the agent from nothing but enforcing, which asks again.
                Err(error @ PinError::Foreign { .. }) => tracing::warn!("{error}"),
                result => result?,
            }
        }
        let tap = match this.pins.as_ref().and_then(Pins::found) {
            None => {
                let mut tap = tap::start(this.tap, &this.plan.sights)?;
                for old in &this.old {
                    tap.leave_alone(&old.connections())?;
                }
                tap
            }
            Some(directory) => {
                let enforcer = this.enforcer();
                let mut tap = tap::adopt(directory, this.tap, enforcer, &this.plan.sights)
                    .map_err(EnforceError::Found)?;
                this.active = Some(activate(&mut tap, enforcer)?);
                this.adopted = true;
                // It may have run out since the last agent.
                this.renew(&tap);
                tracing::info!(directory = %directory.display(), "took over what was pinned");
                tap
            }
        };
        for old in &this.old {
            old.hand_over();
        }
        Ok((this, tap))
    }

    /// The enforcer that is chosen; of two that can't be, the gate.
    fn enforcer(&self) -> Enforcer {
        self.choice().unwrap_or(Enforcer::Gate)
    }

    fn choice(&self) -> Result<Enforcer, String> {
        self.chosen
            .get_or_init(|| choose_enforcer(self.plan.enforcer))
            .clone()
    }

    fn take(&mut self) -> Result<(), PinError> {
        if self.pins.is_some() {
            return Ok(());
        }
        // Of the maps and programs that are pinned, these tell which they are.
        let kinds = [self.tap.name(), self.enforcer().name()];
        let pins = Pins::take(
            &self.plan.pin_dir,
            tap::load::bytes(),
            &(&self.plan.sights, kinds),
        )?;
        self.old = old::all(&pins);
        self.pins = Some(pins);
        Ok(())
    }

    /// The kind of enforcer that there is or would be, or why there is none. Nothing is tried for it: an audit loads nothing that could change
    /// anything.
    pub fn kind(&self) -> Result<&'static str, String> {
        if let Some(active) = &self.active {
            return Ok(active.name());
        }
        let Some(chosen) = self.chosen.get().cloned() else {
            return Err(
                "not tried, as nothing is enforced; `pendguard doctor` tries it".to_owned(),
            );
        };
        let chosen = chosen?;
        if !pins::is_bpffs(&self.plan.pin_dir)
            && let Some(why) = pins::not_mountable(&self.plan.pin_dir)
        {
            let path = self.plan.pin_dir.clone();
            return Err(PinError::NoBpffs { path, reason: why }.to_string());
        }
        Ok(chosen.name())
    }

    /// The same, having tried which the kernel takes.
    pub fn tried(&self) -> Result<&'static str, String> {
        self.choice()?;
        self.kind()
    }

    /// Whether it is set up.
    pub fn active(&self) -> bool {
        self.active.is_some()
    }

    /// Whether a tap was taken over, with its processes and connections.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Sets enforcement up, if it isn't yet: from here on what is pinned goes on without the agent.
    pub fn enforce(&mut self, tap: &mut Tap) -> Result<(), EnforceError> {
        if self.active.is_some() {
            return Ok(());
        }
        let enforcer = self.choice().map_err(EnforceError::Kernel)?;
        self.take()?;
        if enforcer == Enforcer::Gate {
            // Without it the gate could not see that the source has read a part of a buffer already.
            let at = btf::consumed_at().map_err(|e| EnforceError::Kernel(e.to_string()))?;
            if let Some(word) = tap.control.atomic(0, offset_of!(Control, consumed_at)) {
                word.store(at, Ordering::Relaxed);
            }
        }
        self.renew(tap);
        // Before it is pinned, so that what is pinned is whole; and before anything is rejected.
        let active = activate(tap, enforcer)?;
        if let Some(pins) = &self.pins {
            pins.fill(|directory| tap.pin(directory))?;
        }
        tracing::info!(enforcer = active.name(), directory = %self.plan.pin_dir.display(), "enforcing; everything is pinned");
        self.active = Some(active);
        Ok(())
    }

    /// What a process's calls count as from now on. Where they are to be rejected, its connections will be joined.
    pub fn rule(&mut self, pid: u32, ruling: u32) {
        for old in &mut self.old {
            old.rule(pid, ruling);
        }
        if ruling == verdict::REJECTED {
            self.want(pid);
        }
    }

    /// A process has ended.
    pub fn forget(&mut self, pid: u32) {
        for old in &mut self.old {
            old.forget(pid);
        }
    }

    /// Calls of this process are to be rejected, or a connection of it has begun.
    pub fn want(&mut self, pid: u32) {
        match &mut self.active {
            Some(Active::Gate(gate)) => gate.want(pid),
            Some(Active::Rewrite(rewrite)) => rewrite.want(pid),
            None => {}
        }
    }

    /// When the next try is due.
    pub fn due(&self) -> Option<Instant> {
        match self.active.as_ref()? {
            Active::Gate(gate) => gate.due(),
            Active::Rewrite(rewrite) => rewrite.due(),
        }
    }

    /// Tries what is due.
    pub fn work(&mut self, tap: &Tap) {
        match &mut self.active {
            Some(Active::Gate(gate)) => gate.work(&view(tap)),
            Some(Active::Rewrite(rewrite)) => rewrite.work(&view(tap)),
            None => {}
        }
    }

    /// Once a second: renews the lease, and forgets what has gone.
    pub fn tick(&mut self, tap: &Tap) {
        if self.pins.is_some() {
            self.renew(tap);
        }
        match &mut self.active {
            Some(Active::Gate(gate)) => gate.sweep(&view(tap)),
            Some(Active::Rewrite(rewrite)) => rewrite.sweep(&view(tap)),
            None => {}
        }
        self.old.retain(|old| {
            let kept = old.serves() > 0;
            if !kept {
                old.remove();
            }
            kept
        });
    }

    fn renew(&self, tap: &Tap) {
        let now = crate::observer::since_boot();
        let words = [
            (offset_of!(Control, lease), self.plan.lease),
            (offset_of!(Control, attended), ATTENDED),
        ];
        for (offset, time) in words {
            let until = now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let controls = self.old.iter().map(|old| &old.control);
            for control in controls.chain([&tap.control]) {
                if let Some(word) = control.atomic(0, offset) {
                    word.store(until, Ordering::Relaxed);
                }
            }
        }
    }

    /// What other builds' programs counted for a process.
    pub fn counted(&self, pid: u32) -> impl Iterator<Item = Slot> + '_ {
        self.old.iter().filter_map(move |old| old.slot(pid))
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        self.old
            .iter()
            .map(|old| {
                format!(
                    "{} connections are still enforced by another build's programs ({}), until they close",
                    old.serves(),
                    name(old.directory())
                )
            })
            .collect()
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn view(tap: &Tap) -> View<'_> {
    View {
        targets: &tap.targets,
        connections: &tap.connections,
        slots: &tap.slots,
    }
}

fn choose_tap(asked: cli::Tap) -> Result<Kind, NoFentry> {
    match asked {
        cli::Tap::Tracepoint => Ok(Kind::Tracepoint),
        cli::Tap::Fentry => tap::probe::functions()
            .map(|()| Kind::Fentry)
            .map_err(NoFentry),
        cli::Tap::Auto => Ok(match tap::probe::functions() {
            Ok(()) => Kind::Fentry,
            Err(why) => {
                tracing::debug!("tap fentry is not possible here: {why}");
                Kind::Tracepoint
            }
        }),
    }
}

fn choose_enforcer(asked: cli::Enforcer) -> Result<Enforcer, String> {
    let rewrite = || {
        tap::probe::writes()
            .map(|()| Enforcer::Rewrite)
            .map_err(|why| format!("enforcer rewrite: the kernel refuses it: {why}"))
    };
    let gate = || match kernels::refused() {
        None => Ok(Enforcer::Gate),
        Some(why) => Err(format!("enforcer gate: {why}")),
    };
    match asked {
        cli::Enforcer::Rewrite => rewrite(),
        cli::Enforcer::Gate => gate(),
        cli::Enforcer::Auto => {
            rewrite().or_else(|first| gate().map_err(|second| format!("{second}; {first}")))
        }
    }
}

fn activate(tap: &mut Tap, enforcer: Enforcer) -> Result<Active, EnforcerError> {
    Ok(match enforcer {
        Enforcer::Gate => Active::Gate(tap.gate()?),
        Enforcer::Rewrite => Active::Rewrite(tap.rewrite()?),
    })
}

/// Forgets notes on connections that are gone.
fn forget_gone(obstacles: &mut Obstacles, view: &View<'_>) {
    let gone: Vec<ConnKey> = obstacles
        .keys()
        .flatten()
        .filter(|key| view.connections.get(key, 0).is_err())
        // This build's tap may not have joined it yet.
        .filter(|key| {
            !obstacles.get(key, 0).is_ok_and(|note| note == FOREIGN)
                || view.targets.get(&key.tgid, 0).is_err()
        })
        .collect();
    for key in gone {
        let _ = obstacles.remove(&key);
    }
}

/// [`Tracked::epoch`] of one that is read as bytes.
fn epoch(bytes: &[u8]) -> u64 {
    word64(bytes, offset_of!(Tracked, epoch))
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}
