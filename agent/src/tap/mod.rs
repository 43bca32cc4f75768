//! The tap in the kernel: loads the programs, attaches them, and owns their maps.
//!
//! | module | what it does |
//! |---|---|
//! | [`hooks`] | which program goes where |
//! | [`load`] | loads the programs and attaches them |
//! | [`probe`] | tries which of them the kernel takes |
//! | [`tracefs`] | finds the tracepoints, mounting nothing for others to see |
//! | [`counters`] | reads counters from memory |
//! | [`answers`] | reads what is kept of answers |
//! | [`events`] | reads process events |
//! | [`sys`] | the system call, for what aya has no name for |
//! | [`account`] | what the kernel accounts of a program |
//! | [`turns`] | how many programs do the same, where the kernel skips them |
//!
//! Programs load one at a time: one that the kernel refuses is left out with its reason, and the others go on. Nothing is
//! pinned before something is to be enforced ([`crate::enforce`]): until then, when the agent ends, however it ends, the
//! kernel takes everything away.

pub mod account;
pub mod answers;
pub mod counters;
pub mod events;
pub mod hooks;
pub mod load;
pub mod probe;
pub mod sys;
pub mod targets;
pub mod tracefs;
pub mod turns;

use std::os::fd::OwnedFd;
use std::path::Path;

use agent_common::abi::answers::{MAX_ANSWERS, MAX_HISTOGRAMS};
use agent_common::abi::{
    ConnKey, Control, FOREIGN, MAX_CONNECTIONS, MAX_GATED, MAX_SLOTS, MAX_TARGETS, Slot, Totals,
    Tracked,
};
use agent_common::h2::paths::{PathError, PathTable};
use agent_common::h2::substitute::{self, Substitute};
use aya::EbpfError;
use aya::maps::{Array, HashMap, Map, MapData, MapError, ProgramArray, Queue, RingBuf, SockHash};
use aya::programs::ProgramError;

use self::answers::Answering;
use self::counters::{LargeArray, MappedArray};
use self::hooks::{
    ANSWER_WALKS, ANSWERS, EDITS, GATE, GATE_WALK, HOLDS, HOOKS, Hook, Kind, QUIET, REWRITES, WALKS,
};
use self::load::{Attached, Loaded, Object, chain, io_error, map_error};
pub use self::targets::Targets;
use self::tracefs::TracefsError;
use crate::enforce::gate::{GATED, Gate};
use crate::enforce::pins::{self, PinError};
use crate::enforce::rewrite::Rewrite;
use crate::model::{MapFill, ProgramStatus};

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

/// How calls are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforcer {
    /// In the source's socket.
    Gate,
    /// In the sender's buffer.
    Rewrite,
}

impl Enforcer {
    /// As the command line and the metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Rewrite => "rewrite",
        }
    }
}

/// The map of the sources' ends of the connections that the gate stands before, by their own cookies.
const GATE_SOCKETS: &str = "GATE";

/// Tracked connections, read as bytes (see [`agent_common::abi::tracked`]).
pub type Connections = HashMap<MapData, ConnKey, [u8; size_of::<Tracked>()]>;

/// The loaded and attached tap. Dropping it detaches everything that isn't pinned.
pub struct Tap {
    /// What the programs of system calls hang on.
    pub kind: Kind,
    /// The object; `None` where everything was found pinned.
    object: Option<Object>,
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
    /// What is kept of answers.
    pub answers: Answering,
    enforcer: Option<EnforcerMaps>,
    /// The map of the sources' ends, where it was found pinned.
    sockets: Option<SockHash<MapData, u64>>,
}

struct EnforcerMaps {
    gated: HashMap<MapData, u64, [u8; GATED]>,
    obstacles: HashMap<MapData, ConnKey, u32>,
    connected: HashMap<MapData, ConnKey, u64>,
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

    fn large<T: Copy>(&mut self, name: &'static str, len: u32) -> Result<LargeArray<T>, TapError> {
        LargeArray::new((self.0)(name)?, len).map_err(|e| io_error(name, &e))
    }

    fn tap(
        &mut self,
        kind: Kind,
        programs: Vec<Attached>,
        maps: Vec<(String, OwnedFd)>,
    ) -> Result<Tap, TapError> {
        Ok(Tap {
            kind,
            object: None,
            programs,
            maps,
            targets: Targets::new((self.0)("TARGETS")?, self.mapped("ENTERED", 1)?)?,
            connections: self.take("CONNECTIONS")?,
            free_slots: self.take("FREE_SLOTS")?,
            events: Some(self.take("EVENTS")?),
            slots: self.mapped("SLOTS", MAX_SLOTS)?,
            totals: self.mapped("TOTALS", 1)?,
            control: self.mapped("CONTROL", 1)?,
            answers: Answering {
                histograms: self.large("HISTOGRAMS", MAX_HISTOGRAMS)?,
                histogram_keys: self.mapped("HISTOGRAM_KEYS", MAX_HISTOGRAMS)?,
                messages: self.mapped("MESSAGES", MAX_SLOTS)?,
                histogram_of: self.take("HISTOGRAM_OF")?,
                free: self.take("FREE_HISTOGRAMS")?,
                connections: self.take("ANSWERS")?,
                gone: self.take("GONE")?,
                calls: self.take("CALLS")?,
                quieted: self.large("QUIETED", MAX_SLOTS)?,
                quiet_method: None,
                on: false,
            },
            enforcer: Some(EnforcerMaps {
                gated: self.take("GATED")?,
                obstacles: self.take("OBSTACLES")?,
                connected: self.take("SOCKETS")?,
            }),
            sockets: None,
        })
    }
}

/// What a tap is to see.
#[derive(Clone, Debug, Hash)]
pub struct Sights {
    /// The paths to watch.
    pub methods: Vec<String>,
    /// Whether answers are followed.
    pub answers: bool,
}

/// Loads the programs and attaches them.
pub fn start(kind: Kind, sights: &Sights) -> Result<Tap, TapError> {
    on_a_thread(|| start_here(kind, sights))
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

fn start_here(kind: Kind, sights: &Sights) -> Result<Tap, TapError> {
    let methods = &sights.methods;
    let (tracefs, private) = tracefs::reach()?;
    if private {
        tracing::info!("tracefs is not mounted: using a private mount that the host doesn't see");
    }
    let mut object = Object::load()?;
    let mut paths: Array<_, PathTable> = object.typed("PATHS")?;
    let mut table = Box::new(PathTable::EMPTY);
    table
        .fill(methods.iter().map(String::as_str))
        .map_err(TapError::Path)?;
    paths
        .set(0, table.as_ref(), 0)
        .map_err(|e| map_error("PATHS", &e))?;
    let mut substitutes: Array<_, Substitute> = object.typed("SUBSTITUTES")?;
    for (number, method) in (0..).zip(methods) {
        let others = methods.iter().map(String::as_str);
        let (_, value) = substitute::choose(method, others).unwrap_or(([0; _], Substitute::NONE));
        substitutes
            .set(number, value, 0)
            .map_err(|e| map_error("SUBSTITUTES", &e))?;
    }
    let mut free_slots: Queue<_, u32> = object.typed("FREE_SLOTS")?;
    for slot in 1..MAX_SLOTS {
        free_slots
            .push(slot, 0)
            .map_err(|e| map_error("FREE_SLOTS", &e))?;
    }
    for walk in &WALKS {
        object.continue_in(walk, kind)?;
    }
    if sights.answers {
        answers::fill(&object)?;
        for walk in &ANSWER_WALKS {
            object.continue_in(walk, kind)?;
        }
    }
    let maps = object.descriptors()?;
    let mut by_name = |name| object.map(name);
    let mut tap = Maps(&mut by_name).tap(kind, Vec::new(), maps)?;
    tap.answers.watch(methods);
    if sights.answers {
        tap.answers.follow(&tap.control, methods);
    }
    tap.programs = hooks(sights.answers)
        .map(|hook| object.attach(hook, kind, &tracefs))
        .collect::<Result<_, _>>()?;
    object.loaded();
    tap.object = Some(object);
    Ok(tap)
}

/// The hooks of the tap.
fn hooks(answers: bool) -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().chain(ANSWERS.iter().filter(move |_| answers))
}

/// Takes over a tap that an agent of the same build left pinned in `directory`, programs running.
pub fn adopt(
    directory: &Path,
    kind: Kind,
    enforcer: Enforcer,
    sights: &Sights,
) -> Result<Tap, TapError> {
    let mut by_name =
        |name: &'static str| pins::open_map(directory, name).map_err(|e| map_error(name, &e));
    let hooks = hooks(sights.answers).map(|hook| (hook, kind));
    let programs = match enforcer {
        Enforcer::Gate => hooks
            .chain(HOLDS.iter().map(|hook| (hook, Kind::Tracepoint)))
            .map(|(hook, kind)| adopted(directory, hook, kind))
            .collect(),
        Enforcer::Rewrite => hooks
            .chain(EDITS.iter().map(|hook| (hook, kind)))
            .map(|(hook, kind)| adopted(directory, hook, kind))
            .collect(),
    };
    let mut tap = Maps(&mut by_name).tap(kind, programs, Vec::new())?;
    tap.answers.watch(&sights.methods);
    if enforcer == Enforcer::Gate {
        tap.sockets = Some(Maps(&mut by_name).take(GATE_SOCKETS)?);
    }
    if sights.answers {
        tap.answers.follow(&tap.control, &sights.methods);
    }
    Ok(tap)
}

/// A program that is found pinned, and whether its link is.
fn adopted(directory: &Path, hook: &Hook, kind: Kind) -> Attached {
    let mut attached = Attached::new(hook, kind);
    for number in hook.numbers(turns::here()) {
        let name = format!("{}{number}", hook.program);
        let program = pins::open(&directory.join(pins::program(&name)));
        let linked = directory.join(pins::link(&name)).exists();
        let error = match (&program, linked) {
            (Ok(_), true) => None,
            (Err(e), _) => Some(format!("not found pinned: {e}")),
            (Ok(_), false) => Some("its link is not pinned".to_owned()),
        };
        if let Some(error) = error {
            attached.status.error = Some(format!("{name}: {error}. Without it {}", hook.without));
        }
        attached.instances.push(Loaded {
            name,
            program: program.ok(),
            link: None,
        });
    }
    attached
}

/// Why there is no enforcer.
#[derive(Debug, thiserror::Error)]
pub enum EnforcerError {
    /// A map, or a hook.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The kernel refuses a program.
    #[error("the kernel refuses {0}: {1}")]
    Program(&'static str, String),
}

impl Tap {
    /// The gate. Its programs are loaded if need be, and the hooks attached that it needs to join connections.
    pub fn gate(&mut self) -> Result<Gate, EnforcerError> {
        if let Some(object) = &mut self.object {
            let refused = |name| move |reason| EnforcerError::Program(name, reason);
            let mut gates: ProgramArray<_> = object.typed("GATES")?;
            let (place, walk) = GATE_WALK;
            let fd = object.sk_skb(walk).map_err(refused(walk))?;
            let fd = fd.fd().map_err(|e| refused(walk)(chain(&e)))?;
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
            let failed = |e: ProgramError| refused(GATE)(chain(&e));
            let program = object.sk_skb(GATE).map_err(refused(GATE))?;
            let link = program.attach(sockets.fd()).map_err(failed)?;
            // It is never taken off: the map goes, when its last socket has closed.
            std::mem::forget(program.take_link(link).map_err(failed)?);
            let holds = attach_all(object, &HOLDS, Kind::Tracepoint)?;
            self.programs.extend(holds);
            self.sockets = Some(sockets);
        }
        match (self.enforcer.take(), self.sockets.take()) {
            (Some(maps), Some(sockets)) => Ok(Gate::new(sockets, maps.gated, maps.obstacles)),
            _ => Err(in_use(GATE_SOCKETS)),
        }
    }

    /// `rewrite`. Its programs are loaded if need be, and attached: nothing is rejected before a descriptor is known for a socket.
    pub fn rewrite(&mut self) -> Result<Rewrite, EnforcerError> {
        if let Some(object) = &mut self.object {
            let quiet = self.answers.on().then_some(&QUIET);
            for walk in REWRITES.iter().chain(quiet) {
                object.continue_in(walk, self.kind)?;
            }
            let hooks = attach_all(object, &EDITS, self.kind)?;
            object.loaded();
            self.programs.extend(hooks);
        }
        match self.enforcer.take() {
            Some(maps) => Ok(Rewrite::new(maps.connected, maps.obstacles)),
            None => Err(in_use("SOCKETS")),
        }
    }

    /// Notes that programs of another build enforce these connections, and count them.
    pub fn leave_alone(&mut self, connections: &[ConnKey]) -> Result<(), TapError> {
        let Some(maps) = &mut self.enforcer else {
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
        for one in self.programs.iter_mut().flat_map(|p| &mut p.instances) {
            if let Some(program) = &one.program {
                pins::pin(program, &directory.join(pins::program(&one.name)))?;
            }
            if let Some(link) = one.link.take() {
                let path = directory.join(pins::link(&one.name));
                link.pin(&path).map_err(|e| PinError::Pin {
                    path,
                    reason: crate::errors::chain(&e),
                })?;
            }
        }
        Ok(())
    }

    /// How full the maps are that may become full.
    pub fn fill_levels(&self) -> Vec<MapFill> {
        let (answers, histograms) = self.answers.fill_levels();
        let level = |name, entries, max: u32| MapFill {
            name,
            entries,
            max_entries: max.into(),
        };
        vec![
            level("TARGETS", self.targets.keys().count() as u64, MAX_TARGETS),
            level(
                "CONNECTIONS",
                self.connections.keys().count() as u64,
                MAX_CONNECTIONS,
            ),
            level("ANSWERS", answers, MAX_ANSWERS),
            level("HISTOGRAMS", histograms, MAX_HISTOGRAMS),
        ]
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
            if let Some(account) = attached.account() {
                status.missed = account.missed;
                status.runs = (account.runs > 0).then_some((account.runs, account.nanoseconds));
            }
            status
        };
        self.programs.iter().map(status).collect()
    }
}

fn attach_all(object: &mut Object, hooks: &[Hook], kind: Kind) -> Result<Vec<Attached>, TapError> {
    on_a_thread(|| {
        let (tracefs, _) = tracefs::reach()?;
        hooks
            .iter()
            .map(|hook| object.attach(hook, kind, &tracefs))
            .collect()
    })
}

fn in_use(name: &'static str) -> EnforcerError {
    EnforcerError::Tap(TapError::Map {
        name,
        reason: "in use".into(),
    })
}
