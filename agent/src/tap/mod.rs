//! The tap in the kernel: loads the programs, attaches them, and owns their maps.
//!
//! | module | what it does |
//! |---|---|
//! | [`hooks`] | which program goes where |
//! | [`tracefs`] | finds the tracepoints, mounting nothing for others to see |
//! | [`counters`] | reads counters from memory |
//! | [`events`] | reads process events |
//! | [`account`] | what the kernel accounts of a program |
//!
//! Programs load one at a time: one that the kernel refuses is left out with its reason, and the others go on. Nothing is
//! pinned; when the agent ends, however it ends, the kernel takes everything away.

pub mod account;
pub mod counters;
pub mod events;
pub mod hooks;
pub mod tracefs;

use std::path::{Path, PathBuf};

use agent_common::abi::{ConnKey, Control, MAX_SLOTS, Slot, Target, Totals, Tracked};
use agent_common::h2::paths::{PathError, PathTable};
use agent_common::h2::substitute::{self, Substitute};
use aya::maps::{Array, HashMap, Map, MapData, MapError, ProgramArray, Queue, RingBuf, SockHash};
use aya::programs::{ProgramError, SkSkb, TracePoint};
use aya::{Ebpf, EbpfError, EbpfLoader};

use self::counters::MappedArray;
use self::hooks::{GATE, GATE_WALK, HOLDS, HOOKS, Hook, WALKS};
use self::tracefs::TracefsError;
use crate::enforce::gate::Gate;
use crate::host::{Outcome, ProbeResult, ProgramProbe};
use crate::model::ProgramStatus;

/// The object that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pendguard.bpf.o"));

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel refused the maps.
    #[error("the kernel refuses Pendguard's BPF maps: {}", chain(.0))]
    Load(#[source] Box<EbpfError>),
    /// A map is missing or of another kind.
    #[error("BPF map {name}: {reason}")]
    Map {
        /// Its name in the object.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A watched path that can't be watched (the config refuses it before).
    #[error("a watched method can't be watched: {0:?}")]
    Path(PathError),
    /// A program that parses.
    #[error("the kernel refuses {0}, without which nothing is parsed: {1}")]
    Walk(&'static str, String),
    /// A program that nothing can be done without.
    #[error("{program} can't be attached to {hook}: {reason}")]
    Required {
        /// The program.
        program: &'static str,
        /// Its tracepoint.
        hook: String,
        /// Why.
        reason: String,
    },
    /// No tracefs.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// The thread that attaches.
    #[error("the thread that attaches the programs: {0}")]
    Thread(String),
}

/// An error and what caused it, in one line; of a verifier's log only the end.
fn chain(error: &dyn std::error::Error) -> String {
    let text = crate::errors::chain(error);
    match text.char_indices().nth_back(1500) {
        Some((cut, _)) => format!("… {}", &text[cut..]),
        None => text,
    }
}

/// Watched processes.
pub type Targets = HashMap<MapData, u32, Target>;
/// Tracked connections, read as bytes (see [`agent_common::abi::tracked`]).
pub type Connections = HashMap<MapData, ConnKey, [u8; size_of::<Tracked>()]>;

/// The loaded and attached tap. Dropping it detaches everything.
pub struct Tap {
    ebpf: Ebpf,
    programs: Vec<ProgramStatus>,
    /// Watched processes.
    pub targets: Targets,
    /// Tracked connections.
    pub connections: Connections,
    /// Slots that no process has.
    pub free_slots: Queue<MapData, u32>,
    /// Process events.
    pub events: Option<RingBuf<MapData>>,
    /// Counters by slot.
    pub slots: MappedArray<Slot>,
    /// Counters of the node.
    pub totals: MappedArray<Totals>,
    /// What governs enforcement.
    pub control: MappedArray<Control>,
    _gates: Option<ProgramArray<MapData>>,
    _walks: ProgramArray<MapData>,
}

/// Loads the programs and attaches them; `methods` are the paths to watch.
pub fn start(methods: &[String]) -> Result<Tap, TapError> {
    let methods = methods.to_vec();
    // A thread of its own, because its mount namespace may change (see `tracefs`).
    std::thread::Builder::new()
        .name("attach".into())
        .spawn(move || start_here(&methods))
        .map_err(|e| TapError::Thread(e.to_string()))?
        .join()
        .map_err(|_| TapError::Thread("it panicked".into()))?
}

fn start_here(methods: &[String]) -> Result<Tap, TapError> {
    let (tracefs, private) = tracefs::reach()?;
    if private {
        tracing::info!("tracefs is not mounted: using a private mount that the host doesn't see");
    }
    let mut ebpf = load_maps()?;
    let mut paths: Array<_, PathTable> = map(&mut ebpf, "PATHS")?;
    let mut table = Box::new(PathTable::EMPTY);
    table
        .fill(methods.iter().map(String::as_str))
        .map_err(TapError::Path)?;
    paths
        .set(0, table.as_ref(), 0)
        .map_err(|e| map_error("PATHS", &e))?;
    let mut substitutes: Array<_, Substitute> = map(&mut ebpf, "SUBSTITUTES")?;
    for (number, method) in (0..).zip(methods) {
        let others = methods.iter().map(String::as_str);
        let (_, value) = substitute::choose(method, others).unwrap_or(([0; _], Substitute::NONE));
        substitutes
            .set(number, value, 0)
            .map_err(|e| map_error("SUBSTITUTES", &e))?;
    }
    let mut free_slots: Queue<_, u32> = map(&mut ebpf, "FREE_SLOTS")?;
    for slot in 1..MAX_SLOTS {
        free_slots
            .push(slot, 0)
            .map_err(|e| map_error("FREE_SLOTS", &e))?;
    }
    let walks = load_walks(&mut ebpf)?;
    let programs = HOOKS
        .iter()
        .map(|hook| attach(&mut ebpf, hook, &tracefs))
        .collect::<Result<_, _>>()?;
    Ok(Tap {
        targets: map(&mut ebpf, "TARGETS")?,
        connections: map(&mut ebpf, "CONNECTIONS")?,
        free_slots,
        events: Some(map(&mut ebpf, "EVENTS")?),
        slots: MappedArray::new(take(&mut ebpf, "SLOTS")?, MAX_SLOTS)
            .map_err(|e| io_error("SLOTS", &e))?,
        totals: MappedArray::new(take(&mut ebpf, "TOTALS")?, 1)
            .map_err(|e| io_error("TOTALS", &e))?,
        control: MappedArray::new(take(&mut ebpf, "CONTROL")?, 1)
            .map_err(|e| io_error("CONTROL", &e))?,
        _gates: None,
        ebpf,
        programs,
        _walks: walks,
    })
}

fn load_maps() -> Result<Ebpf, TapError> {
    EbpfLoader::new()
        .load(OBJECT)
        .map_err(|e| TapError::Load(Box::new(e)))
}

fn load_walks(ebpf: &mut Ebpf) -> Result<ProgramArray<MapData>, TapError> {
    let mut walks: ProgramArray<_> = map(ebpf, "WALKS")?;
    for (place, name) in WALKS {
        let refused = |reason| TapError::Walk(name, reason);
        let program = tracepoint(ebpf, name).map_err(refused)?;
        program.load().map_err(|e| refused(chain(&e)))?;
        let fd = program.fd().map_err(|e| refused(chain(&e)))?;
        walks
            .set(place, fd, 0)
            .map_err(|e| map_error("WALKS", &e))?;
    }
    Ok(walks)
}

fn sk_skb<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SkSkb, GateError> {
    let refused = |reason| GateError::Program(name, reason);
    let program: &mut SkSkb = ebpf
        .program_mut(name)
        .ok_or_else(|| refused("not in the object".to_owned()))?
        .try_into()
        .map_err(|e: ProgramError| refused(chain(&e)))?;
    program.load().map_err(|e| refused(chain(&e)))?;
    Ok(program)
}

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut TracePoint, String> {
    ebpf.program_mut(name)
        .ok_or_else(|| "not in the object".to_owned())?
        .try_into()
        .map_err(|e: ProgramError| chain(&e))
}

/// Loads and attaches one program; an `Err` only where it is required.
fn attach(ebpf: &mut Ebpf, hook: &Hook, tracefs: &Path) -> Result<ProgramStatus, TapError> {
    let place = hook.place();
    let mut status = ProgramStatus {
        name: hook.program,
        hook: place.clone(),
        error: None,
        verified_instructions: None,
        missed: None,
        runs: None,
    };
    if let Err(reason) = try_attach(ebpf, hook, tracefs, &mut status) {
        if hook.required {
            return Err(TapError::Required {
                program: hook.program,
                hook: place,
                reason,
            });
        }
        tracing::warn!(
            program = hook.program,
            hook = %place,
            "not attached: {reason}. Without it {}",
            hook.without
        );
        status.error = Some(format!("{reason}. Without it {}", hook.without));
    }
    Ok(status)
}

fn try_attach(
    ebpf: &mut Ebpf,
    hook: &Hook,
    tracefs: &Path,
    status: &mut ProgramStatus,
) -> Result<(), String> {
    check_format(hook, tracefs)?;
    let program = tracepoint(ebpf, hook.program)?;
    program.load().map_err(|e| chain(&e))?;
    status.verified_instructions = verified(program);
    program
        .attach(hook.category, hook.name)
        .map_err(|e| chain(&e))?;
    Ok(())
}

fn check_format(hook: &Hook, tracefs: &Path) -> Result<(), String> {
    let file: PathBuf = tracefs
        .join("events")
        .join(hook.category)
        .join(hook.name)
        .join("format");
    let format = std::fs::read_to_string(&file).map_err(|e| {
        format!(
            "this kernel has no such tracepoint ({}: {e})",
            file.display()
        )
    })?;
    match hook
        .fields
        .iter()
        .find(|f| !tracefs::has_field(&format, f.name, f.offset, f.size))
    {
        Some(f) => Err(format!(
            "this kernel's record has no field {} of {} bytes at {}",
            f.name, f.size, f.offset
        )),
        None => Ok(()),
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, TapError> {
    ebpf.take_map(name).ok_or_else(|| TapError::Map {
        name,
        reason: "not in the object".into(),
    })
}

fn map<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, TapError> {
    M::try_from(take(ebpf, name)?).map_err(|e| map_error(name, &e))
}

fn map_error(name: &'static str, error: &MapError) -> TapError {
    TapError::Map {
        name,
        reason: chain(error),
    }
}

fn io_error(name: &'static str, error: &std::io::Error) -> TapError {
    TapError::Map {
        name,
        reason: error.to_string(),
    }
}

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A map, or a hook that holds sends.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The kernel refuses a program.
    #[error("the kernel refuses {0}: {1}")]
    Program(&'static str, String),
}

impl Tap {
    /// Loads the gate and what it needs to join connections.
    pub fn gate(&mut self) -> Result<Gate, GateError> {
        let mut gates: ProgramArray<_> = map(&mut self.ebpf, "GATES")?;
        let (place, walk) = GATE_WALK;
        let program = sk_skb(&mut self.ebpf, walk)?;
        let fd = program
            .fd()
            .map_err(|e| GateError::Program(walk, chain(&e)))?;
        gates
            .set(place, fd, 0)
            .map_err(|e| map_error("GATES", &e))?;
        let sockets: SockHash<_, u64> = map(&mut self.ebpf, "GATE")?;
        let refused = |e: ProgramError| GateError::Program(GATE, chain(&e));
        let program = sk_skb(&mut self.ebpf, GATE)?;
        let link = program.attach(sockets.fd()).map_err(refused)?;
        // It is never taken off: the map is, when its last socket has closed.
        std::mem::forget(program.take_link(link).map_err(refused)?);
        let gated = map(&mut self.ebpf, "GATED")?;
        let obstacles = map(&mut self.ebpf, "OBSTACLES")?;
        let ebpf = &mut self.ebpf;
        // A thread of its own, because its mount namespace may change (see `tracefs`).
        let holds = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let (tracefs, _) = tracefs::reach()?;
                    HOLDS
                        .iter()
                        .map(|hook| attach(ebpf, hook, &tracefs))
                        .collect::<Result<Vec<_>, _>>()
                })
                .join()
        })
        .map_err(|_| TapError::Thread("it panicked".into()))??;
        self.programs.extend(holds);
        self._gates = Some(gates);
        Ok(Gate::new(sockets, gated, obstacles))
    }

    /// Whether a program is attached.
    pub fn attached(&self, program: &str) -> bool {
        self.programs
            .iter()
            .any(|p| p.name == program && p.error.is_none())
    }

    /// The programs as they are now, with what the kernel accounts of them.
    pub fn programs(&self) -> Vec<ProgramStatus> {
        let mut programs = self.programs.clone();
        for status in programs.iter_mut().filter(|p| p.error.is_none()) {
            let Some(account) = self.ebpf.program(status.name).and_then(account::of) else {
                continue;
            };
            status.missed = Some(account.missed);
            status.runs = (account.runs > 0).then_some((account.runs, account.nanoseconds));
        }
        programs
    }
}

/// Loads every program for a trial; for `pendguard doctor`. Nothing is attached, and all of it is gone afterwards.
pub fn probe() -> ProbeResult {
    let mut ebpf = match load_maps() {
        Ok(ebpf) => ebpf,
        Err(error) => {
            return ProbeResult {
                outcome: Outcome::NotSupported,
                detail: error.to_string(),
                programs: Vec::new(),
            };
        }
    };
    let walks = WALKS.iter().map(|(_, name)| (*name, String::new(), true));
    let hooks = HOOKS
        .iter()
        .map(|hook| (hook.program, hook.place(), hook.required));
    let programs: Vec<_> = walks
        .chain(hooks)
        .map(|(name, hook, required)| (trial(&mut ebpf, name, hook), required))
        .collect();
    let loads = |program: &ProgramProbe| program.outcome == Outcome::Supported;
    let refused = programs
        .iter()
        .filter(|(program, _)| !loads(program))
        .count();
    let hopeless = programs
        .iter()
        .find(|(program, required)| *required && !loads(program));
    let (outcome, detail) = match hopeless {
        Some((program, _)) => (
            Outcome::NotSupported,
            format!("the kernel refuses {}, which is needed", program.name),
        ),
        None if refused > 0 => (
            Outcome::Supported,
            format!(
                "the kernel takes {} of {} programs",
                programs.len() - refused,
                programs.len()
            ),
        ),
        None => (
            Outcome::Supported,
            format!("the kernel takes all {} programs", programs.len()),
        ),
    };
    ProbeResult {
        outcome,
        detail,
        programs: programs.into_iter().map(|(program, _)| program).collect(),
    }
}

fn trial(ebpf: &mut Ebpf, name: &'static str, hook: String) -> ProgramProbe {
    let loaded = tracepoint(ebpf, name).and_then(|program| {
        program.load().map_err(|e| chain(&e))?;
        Ok(verified(program))
    });
    let (outcome, verified_instructions, detail) = match loaded {
        Ok(verified) => (Outcome::Supported, verified, String::new()),
        Err(reason) => (Outcome::NotSupported, None, reason),
    };
    ProgramProbe {
        name,
        hook,
        outcome,
        detail,
        verified_instructions,
    }
}

/// Instructions that the verifier walked, where the kernel tells (5.16).
fn verified(program: &TracePoint) -> Option<u32> {
    program
        .info()
        .ok()
        .and_then(|info| info.verified_instruction_count())
}
