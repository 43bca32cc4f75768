//! The tap in the kernel: loads the programs, attaches them, and owns their maps.
//!
//! | module | what it does |
//! |---|---|
//! | [`hooks`] | which program goes where |
//! | [`tracefs`] | finds the tracepoints, mounting nothing for others to see |
//! | [`counters`] | reads counters from memory |
//! | [`events`] | reads process events |
//! | [`sys`] | the system call, for what aya has no name for |
//! | [`account`] | what the kernel accounts of a program |
//!
//! Programs load one at a time: one that the kernel refuses is left out with its reason, and the others go on. Nothing is
//! pinned before something is to be enforced ([`crate::enforce`]): until then, when the agent ends, however it ends, the
//! kernel takes everything away.

pub mod account;
pub mod counters;
pub mod events;
pub mod hooks;
pub mod sys;
pub mod tracefs;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use agent_common::abi::{
    ConnKey, Control, FOREIGN, MAX_GATED, MAX_SLOTS, Slot, Target, Totals, Tracked,
};
use agent_common::h2::paths::{PathError, PathTable};
use agent_common::h2::substitute::{self, Substitute};
use aya::maps::{Array, HashMap, Map, MapData, MapError, ProgramArray, Queue, RingBuf, SockHash};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, ProgramInfo, SkSkb, TracePoint};
use aya::{Ebpf, EbpfError, EbpfLoader};

use self::counters::MappedArray;
use self::hooks::{GATE, GATE_WALK, HOLDS, HOOKS, Hook, WALKS};
use self::tracefs::TracefsError;
use crate::enforce::gate::{GATED, Gate};
use crate::enforce::pins::{self, PinError};
use crate::host::{Outcome, ProbeResult, ProgramProbe};
use crate::model::ProgramStatus;

/// The object that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pendguard.bpf.o"));

/// The programs, as they were built in.
pub fn object() -> &'static [u8] {
    OBJECT
}

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

/// The map of the sources' ends of the connections that the gate stands before, by their own cookies.
const GATE_SOCKETS: &str = "GATE";

/// Watched processes.
pub type Targets = HashMap<MapData, u32, Target>;
/// Tracked connections, read as bytes (see [`agent_common::abi::tracked`]).
pub type Connections = HashMap<MapData, ConnKey, [u8; size_of::<Tracked>()]>;

/// The loaded and attached tap. Dropping it detaches everything that isn't pinned.
pub struct Tap {
    /// The loaded object; `None` where everything was found pinned.
    ebpf: Option<Ebpf>,
    programs: Vec<Attached>,
    /// Each map's name and a descriptor of it, to pin it by.
    maps: Vec<(String, OwnedFd)>,
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
    gate: Option<GateMaps>,
    /// The map of the sources' ends, where it was found pinned.
    sockets: Option<SockHash<MapData, u64>>,
}

/// A program as the tap keeps it.
struct Attached {
    status: ProgramStatus,
    /// It, for the kernel's account.
    program: Option<OwnedFd>,
    /// What keeps it attached, unless that is pinned.
    link: Option<FdLink>,
}

struct GateMaps {
    gated: HashMap<MapData, u64, [u8; GATED]>,
    obstacles: HashMap<MapData, ConnKey, u32>,
}

/// Maps by name, of an object or of a pin directory.
struct Maps<'a>(&'a mut dyn FnMut(&'static str) -> Result<Map, TapError>);

impl Maps<'_> {
    fn take<M: TryFrom<Map, Error = MapError>>(
        &mut self,
        name: &'static str,
    ) -> Result<M, TapError> {
        M::try_from((self.0)(name)?).map_err(|e| map_error(name, &e))
    }

    fn mapped<T: Copy>(
        &mut self,
        name: &'static str,
        len: u32,
    ) -> Result<MappedArray<T>, TapError> {
        MappedArray::new((self.0)(name)?, len).map_err(|e| io_error(name, &e))
    }

    fn tap(
        &mut self,
        programs: Vec<Attached>,
        maps: Vec<(String, OwnedFd)>,
    ) -> Result<Tap, TapError> {
        Ok(Tap {
            ebpf: None,
            programs,
            maps,
            targets: self.take("TARGETS")?,
            connections: self.take("CONNECTIONS")?,
            free_slots: self.take("FREE_SLOTS")?,
            events: Some(self.take("EVENTS")?),
            slots: self.mapped("SLOTS", MAX_SLOTS)?,
            totals: self.mapped("TOTALS", 1)?,
            control: self.mapped("CONTROL", 1)?,
            gate: Some(GateMaps {
                gated: self.take("GATED")?,
                obstacles: self.take("OBSTACLES")?,
            }),
            sockets: None,
        })
    }
}

/// Loads the programs and attaches them; `methods` are the paths to watch.
pub fn start(methods: &[String]) -> Result<Tap, TapError> {
    on_a_thread(|| start_here(methods))
}

/// Runs what attaches on a thread of its own, because its mount namespace may change (see `tracefs`).
fn on_a_thread<T: Send>(
    attach: impl FnOnce() -> Result<T, TapError> + Send,
) -> Result<T, TapError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("attach".into())
            .spawn_scoped(scope, attach)
            .map_err(|e| TapError::Thread(e.to_string()))?
            .join()
            .map_err(|_| TapError::Thread("it panicked".into()))?
    })
}

fn start_here(methods: &[String]) -> Result<Tap, TapError> {
    let (tracefs, private) = tracefs::reach()?;
    if private {
        tracing::info!("tracefs is not mounted: using a private mount that the host doesn't see");
    }
    let mut ebpf = load_maps()?;
    let mut paths: Array<_, PathTable> =
        Array::try_from(duplicate(&ebpf, "PATHS")?).map_err(|e| map_error("PATHS", &e))?;
    let mut table = Box::new(PathTable::EMPTY);
    table
        .fill(methods.iter().map(String::as_str))
        .map_err(TapError::Path)?;
    paths
        .set(0, table.as_ref(), 0)
        .map_err(|e| map_error("PATHS", &e))?;
    let mut substitutes: Array<_, Substitute> = Array::try_from(duplicate(&ebpf, "SUBSTITUTES")?)
        .map_err(|e| map_error("SUBSTITUTES", &e))?;
    for (number, method) in (0..).zip(methods) {
        let others = methods.iter().map(String::as_str);
        let (_, value) = substitute::choose(method, others).unwrap_or(([0; _], Substitute::NONE));
        substitutes
            .set(number, value, 0)
            .map_err(|e| map_error("SUBSTITUTES", &e))?;
    }
    let mut free_slots: Queue<_, u32> = Queue::try_from(duplicate(&ebpf, "FREE_SLOTS")?)
        .map_err(|e| map_error("FREE_SLOTS", &e))?;
    for slot in 1..MAX_SLOTS {
        free_slots
            .push(slot, 0)
            .map_err(|e| map_error("FREE_SLOTS", &e))?;
    }
    load_walks(&mut ebpf)?;
    let programs = HOOKS
        .iter()
        .map(|hook| attach(&mut ebpf, hook, &tracefs))
        .collect::<Result<_, _>>()?;
    let maps = descriptors(&ebpf)?;
    let mut by_name = |name| duplicate(&ebpf, name);
    let mut tap = Maps(&mut by_name).tap(programs, maps)?;
    tap.ebpf = Some(ebpf);
    Ok(tap)
}

/// Takes over a tap that an agent of the same build left pinned in `directory`, programs running.
pub fn adopt(directory: &Path) -> Result<Tap, TapError> {
    let mut by_name =
        |name: &'static str| pins::open_map(directory, name).map_err(|e| map_error(name, &e));
    let programs = HOOKS
        .iter()
        .chain(&HOLDS)
        .map(|hook| adopted(directory, hook))
        .collect();
    let mut tap = Maps(&mut by_name).tap(programs, Vec::new())?;
    tap.sockets = Some(Maps(&mut by_name).take(GATE_SOCKETS)?);
    Ok(tap)
}

/// A program that is found pinned, and whether its link is.
fn adopted(directory: &Path, hook: &Hook) -> Attached {
    let program = pins::open(&directory.join(pins::program(hook.program)));
    let linked = directory.join(pins::link(hook.program)).exists();
    Attached {
        status: ProgramStatus {
            name: hook.program,
            hook: hook.place(),
            error: match (&program, linked) {
                (Ok(_), true) => None,
                (Err(e), _) => Some(format!(
                    "not found pinned: {e}. Without it {}",
                    hook.without
                )),
                (Ok(_), false) => Some(format!(
                    "its link is not pinned. Without it {}",
                    hook.without
                )),
            },
            verified_instructions: None,
            missed: None,
            runs: None,
        },
        program: program.ok(),
        link: None,
    }
}

fn load_maps() -> Result<Ebpf, TapError> {
    EbpfLoader::new()
        .load(OBJECT)
        .map_err(|e| TapError::Load(Box::new(e)))
}

/// Another handle of a map of the object's. The object keeps its own: an array of programs loses them with its last one.
fn duplicate(ebpf: &Ebpf, name: &'static str) -> Result<Map, TapError> {
    let map = ebpf.map(name).ok_or_else(|| TapError::Map {
        name,
        reason: "not in the object".into(),
    })?;
    let fd = data(map)
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| io_error(name, &e))?;
    MapData::from_fd(fd)
        .and_then(Map::from_map_data)
        .map_err(|e| map_error(name, &e))
}

/// A descriptor of each map that the programs use.
fn descriptors(ebpf: &Ebpf) -> Result<Vec<(String, OwnedFd)>, TapError> {
    ebpf.maps()
        // Constants of the programs: they need no name.
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, map)| {
            let fd = data(map).fd().as_fd().try_clone_to_owned();
            Ok((
                name.to_owned(),
                fd.map_err(|e| io_error("descriptors", &e))?,
            ))
        })
        .collect()
}

fn data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data)
        | Map::SockHash(data) => data,
        _ => unreachable!("the object has no other kind of map"),
    }
}

fn load_walks(ebpf: &mut Ebpf) -> Result<(), TapError> {
    let mut walks: ProgramArray<_> =
        ProgramArray::try_from(duplicate(ebpf, "WALKS")?).map_err(|e| map_error("WALKS", &e))?;
    for (place, name) in WALKS {
        let refused = |reason| TapError::Walk(name, reason);
        let program = tracepoint(ebpf, name).map_err(refused)?;
        program.load().map_err(|e| refused(chain(&e)))?;
        let fd = program.fd().map_err(|e| refused(chain(&e)))?;
        walks
            .set(place, fd, 0)
            .map_err(|e| map_error("WALKS", &e))?;
    }
    Ok(())
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
fn attach(ebpf: &mut Ebpf, hook: &Hook, tracefs: &Path) -> Result<Attached, TapError> {
    let place = hook.place();
    let mut attached = Attached {
        status: ProgramStatus {
            name: hook.program,
            hook: place.clone(),
            error: None,
            verified_instructions: None,
            missed: None,
            runs: None,
        },
        program: None,
        link: None,
    };
    if let Err(reason) = try_attach(ebpf, hook, tracefs, &mut attached) {
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
        attached.status.error = Some(format!("{reason}. Without it {}", hook.without));
    }
    Ok(attached)
}

fn try_attach(
    ebpf: &mut Ebpf,
    hook: &Hook,
    tracefs: &Path,
    attached: &mut Attached,
) -> Result<(), String> {
    check_format(hook, tracefs)?;
    let program = tracepoint(ebpf, hook.program)?;
    program.load().map_err(|e| chain(&e))?;
    attached.status.verified_instructions = verified(program.info().ok());
    let id = program
        .attach(hook.category, hook.name)
        .map_err(|e| chain(&e))?;
    let link = program.take_link(id).map_err(|e| chain(&e))?;
    attached.program = program
        .fd()
        .ok()
        .and_then(|fd| fd.as_fd().try_clone_to_owned().ok());
    // 5.15, as the programs: before, a perf event can't be pinned.
    attached.link = Some(FdLink::try_from(link).map_err(|e| chain(&e))?);
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
    /// The gate. Its programs are loaded if need be, and the hooks attached that it needs to join connections.
    pub fn gate(&mut self) -> Result<Gate, GateError> {
        if let Some(ebpf) = &mut self.ebpf {
            let mut gates: ProgramArray<_> = ProgramArray::try_from(duplicate(ebpf, "GATES")?)
                .map_err(|e| map_error("GATES", &e))?;
            let (place, walk) = GATE_WALK;
            let program = sk_skb(ebpf, walk)?;
            let fd = program
                .fd()
                .map_err(|e| GateError::Program(walk, chain(&e)))?;
            gates
                .set(place, fd, 0)
                .map_err(|e| map_error("GATES", &e))?;
            let fd = pins::sock_hash(MAX_GATED).map_err(|e| io_error(GATE_SOCKETS, &e))?;
            let copy = fd.try_clone().map_err(|e| io_error(GATE_SOCKETS, &e))?;
            self.maps.push((GATE_SOCKETS.to_owned(), copy));
            let sockets: SockHash<_, u64> = MapData::from_fd(fd)
                .and_then(Map::from_map_data)
                .and_then(SockHash::try_from)
                .map_err(|e| map_error(GATE_SOCKETS, &e))?;
            let refused = |e: ProgramError| GateError::Program(GATE, chain(&e));
            let program = sk_skb(ebpf, GATE)?;
            let link = program.attach(sockets.fd()).map_err(refused)?;
            // It is never taken off: the map goes, when its last socket has closed.
            std::mem::forget(program.take_link(link).map_err(refused)?);
            let holds = on_a_thread(|| {
                let (tracefs, _) = tracefs::reach()?;
                HOLDS
                    .iter()
                    .map(|hook| attach(ebpf, hook, &tracefs))
                    .collect::<Result<Vec<_>, _>>()
            })?;
            self.programs.extend(holds);
            self.sockets = Some(sockets);
        }
        match (self.gate.take(), self.sockets.take()) {
            (Some(maps), Some(sockets)) => Ok(Gate::new(sockets, maps.gated, maps.obstacles)),
            _ => Err(TapError::Map {
                name: GATE_SOCKETS,
                reason: "in use".into(),
            }
            .into()),
        }
    }

    /// Notes that programs of another build enforce these connections, and count them.
    pub fn leave_alone(&mut self, connections: &[ConnKey]) -> Result<(), TapError> {
        let Some(maps) = &mut self.gate else {
            return Ok(());
        };
        for key in connections {
            maps.obstacles
                .insert(key, FOREIGN, 0)
                .map_err(|e| map_error("OBSTACLES", &e))?;
        }
        Ok(())
    }

    /// Pins everything in `directory`, so that it goes on without the agent.
    pub fn pin(&mut self, directory: &Path) -> Result<(), PinError> {
        for (name, fd) in self.maps.drain(..) {
            pins::pin(&fd, &directory.join(pins::map(&name)))?;
        }
        for attached in &mut self.programs {
            let name = attached.status.name;
            if let Some(program) = &attached.program {
                pins::pin(program, &directory.join(pins::program(name)))?;
            }
            if let Some(link) = attached.link.take() {
                let path = directory.join(pins::link(name));
                link.pin(&path).map_err(|e| PinError::Pin {
                    path,
                    reason: crate::errors::chain(&e),
                })?;
            }
        }
        Ok(())
    }

    /// Whether a program is attached.
    pub fn attached(&self, program: &str) -> bool {
        self.programs
            .iter()
            .any(|p| p.status.name == program && p.status.error.is_none())
    }

    /// The programs as they are now, with what the kernel accounts of them.
    pub fn programs(&self) -> Vec<ProgramStatus> {
        let status = |attached: &Attached| {
            let mut status = attached.status.clone();
            if let Some(account) = attached.program.as_ref().and_then(account::of) {
                status.missed = Some(account.missed);
                status.runs = (account.runs > 0).then_some((account.runs, account.nanoseconds));
            }
            status
        };
        self.programs.iter().map(status).collect()
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
    let holds = HOLDS.iter().map(|hook| (hook.program, hook.place(), false));
    let gate = [GATE, GATE_WALK.1].map(|name| (name, "sk_skb/stream_verdict".to_owned(), false));
    let programs: Vec<_> = walks
        .chain(hooks)
        .chain(holds)
        .chain(gate)
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
    let loaded = load(ebpf, name).map(verified);
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

/// Loads a program, whatever its kind.
fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<Option<ProgramInfo>, String> {
    let info = if name == GATE || name == GATE_WALK.1 {
        sk_skb(ebpf, name).map_err(|e| chain(&e))?.info()
    } else {
        let program = tracepoint(ebpf, name)?;
        program.load().map_err(|e| chain(&e))?;
        program.info()
    };
    Ok(info.ok())
}

/// Instructions that the verifier walked, where the kernel tells (5.16).
fn verified(program: Option<ProgramInfo>) -> Option<u32> {
    program.and_then(|info| info.verified_instruction_count())
}
