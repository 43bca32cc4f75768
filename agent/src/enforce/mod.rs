//! Enforcement, as far as it happens in user space.
//!
//! | module | what it does |
//! |---|---|
//! | [`gate`] | puts the gate before connections: when it is safe, and why not otherwise |
//! | [`peer`] | finds the source's end of a connection, across network namespaces |
//! | [`pins`] | what stays in the kernel when the agent goes |
//! | `btf` | where the kernel keeps what the gate must know of a buffer |
//! | [`old`] | what an agent of another build left there |
//! | [`detach`] | takes everything away |
//! | [`kernels`] | on which kernels the gate would not be safe |
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

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent_common::abi::{Control, Slot, verdict};

use self::gate::{Gate, View};
use self::old::Old;
use self::pins::{PinError, Pins};
use crate::tap::{self, GateError, Tap, TapError};

/// How long the programs take it that an agent is there, after its last sign of life.
const ATTENDED: Duration = Duration::from_secs(120);

/// What enforcement is asked to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything is pinned.
    pub pin_dir: PathBuf,
    /// How long it goes on without an agent.
    pub lease: Duration,
    /// The watched methods.
    pub methods: Vec<String>,
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
    /// The gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// What was found pinned.
    #[error("what is pinned can't be taken over: {0}; `pendguard detach` removes it")]
    Found(#[source] TapError),
}

/// Enforcement on this node.
pub struct Enforcement {
    plan: Plan,
    pins: Option<Pins>,
    gate: Option<Gate>,
    old: Vec<Old>,
    adopted: bool,
}

impl Enforcement {
    /// Looks at what is pinned, and takes over what an agent of this build left, or makes a tap of its own.
    pub fn begin(plan: Plan) -> anyhow::Result<(Self, Tap)> {
        let mut this = Self {
            plan,
            pins: None,
            gate: None,
            old: Vec::new(),
            adopted: false,
        };
        // Without a pin directory nothing was ever pinned, and nothing is to be made for an audit.
        if pins::is_bpffs(&this.plan.pin_dir) && this.plan.pin_dir.is_dir() {
            this.take()?;
        }
        let tap = match this.pins.as_ref().and_then(Pins::found) {
            None => {
                let mut tap = tap::start(&this.plan.methods)?;
                for old in &this.old {
                    tap.leave_alone(&old.connections())?;
                }
                tap
            }
            Some(directory) => {
                let mut tap = tap::adopt(directory).map_err(EnforceError::Found)?;
                this.gate = Some(tap.gate().map_err(EnforceError::Gate)?);
                this.adopted = true;
                tracing::info!(directory = %directory.display(), "took over what was pinned");
                tap
            }
        };
        for old in &this.old {
            old.hand_over();
        }
        Ok((this, tap))
    }

    fn take(&mut self) -> Result<(), PinError> {
        if self.pins.is_some() {
            return Ok(());
        }
        let pins = Pins::take(&self.plan.pin_dir, tap::object(), &self.plan.methods)?;
        self.old = old::all(&pins);
        self.pins = Some(pins);
        Ok(())
    }

    /// The kind of enforcer that there is or would be, or why there is none.
    pub fn kind(&self) -> Result<&'static str, String> {
        if self.gate.is_none()
            && let Some(why) = kernels::refused()
        {
            return Err(why);
        }
        if self.gate.is_none()
            && !pins::is_bpffs(&self.plan.pin_dir)
            && let Some(why) = pins::not_mountable(&self.plan.pin_dir)
        {
            let path = self.plan.pin_dir.clone();
            return Err(PinError::NoBpffs { path, reason: why }.to_string());
        }
        Ok("gate")
    }

    /// Whether a tap was taken over, with its processes and connections.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Sets enforcement up, if it isn't yet: from here on what is pinned goes on without the agent.
    pub fn enforce(&mut self, tap: &mut Tap) -> Result<(), EnforceError> {
        if self.gate.is_some() {
            return Ok(());
        }
        if let Some(why) = kernels::refused() {
            return Err(EnforceError::Kernel(why));
        }
        // Without it the gate could not see that the source has read a part of a buffer already.
        let consumed_at = btf::consumed_at().map_err(|e| EnforceError::Kernel(e.to_string()))?;
        self.take()?;
        if let Some(word) = tap.control.atomic(0, offset_of!(Control, consumed_at)) {
            word.store(consumed_at, Ordering::Relaxed);
        }
        self.renew(tap);
        // Before it is pinned, so that what is pinned is whole; and before a socket joins it.
        let gate = tap.gate()?;
        if let Some(pins) = &self.pins {
            pins.fill(|directory| tap.pin(directory))?;
        }
        self.gate = Some(gate);
        tracing::info!(enforcer = "gate", directory = %self.plan.pin_dir.display(), "enforcing; everything is pinned");
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
        if let Some(gate) = &mut self.gate {
            gate.want(pid);
        }
    }

    /// When the next try is due.
    pub fn due(&self) -> Option<Instant> {
        self.gate.as_ref()?.due()
    }

    /// Tries what is due.
    pub fn work(&mut self, tap: &Tap) {
        if let Some(gate) = &mut self.gate {
            gate.work(&view(tap));
        }
    }

    /// Once a second: renews the lease, and forgets what has gone.
    pub fn tick(&mut self, tap: &Tap) {
        if self.pins.is_some() {
            self.renew(tap);
        }
        if let Some(gate) = &mut self.gate {
            gate.sweep(&view(tap));
        }
        self.old.retain(|old| {
            let kept = old.sockets() > 0;
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
                    "{} connections are still behind the gate of another build ({}), until they close",
                    old.sockets(),
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
