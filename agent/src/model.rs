//! What the agent knows of the node, as plain data: made by discovery and the inventory, read by the exporters.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use agent_common::abi::answers::Code;
use agent_common::abi::{self, Manner, Reason};

use crate::durations::Durations;

/// Which of Numaflow's two workloads a replica belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A MonoVertex.
    MonoVertex,
    /// A vertex of a Pipeline.
    Pipeline,
}

impl Kind {
    /// The `kind` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MonoVertex => "MonoVertex",
            Self::Pipeline => "Pipeline",
        }
    }
}

/// A replica's number, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Replica {
    /// `NUMAFLOW_REPLICA` is this number.
    Number(u32),
    /// `NUMAFLOW_REPLICA` is unset or no number. Its calls are always admitted.
    Unknown,
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// What is neither a replica's number nor `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("replica {0:?} is neither a number nor `unknown`")]
pub struct NoReplica(String);

/// As people write it, and as [`Replica`] is displayed.
impl std::str::FromStr for Replica {
    type Err = NoReplica;

    fn from_str(text: &str) -> Result<Self, NoReplica> {
        match text {
            "unknown" => Ok(Self::Unknown),
            // Rust would take a sign, too.
            _ if text.bytes().all(|octet| octet.is_ascii_digit()) => text
                .parse()
                .map(Self::Number)
                .map_err(|_| NoReplica(text.to_owned())),
            _ => Err(NoReplica(text.to_owned())),
        }
    }
}

/// Whose replica a process is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Kubernetes namespace.
    pub namespace: String,
    /// MonoVertex or Pipeline.
    pub kind: Kind,
    /// Name of the MonoVertex or Pipeline.
    pub workload: String,
    /// Name of the vertex; empty for a MonoVertex.
    pub vertex: String,
    /// Name of the pod.
    pub pod: String,
    /// Number of the replica.
    pub replica: Replica,
}

impl Identity {
    /// Which replica of which workload it is, in whatever pod.
    pub fn place(&self) -> Place {
        Place {
            namespace: self.namespace.clone(),
            kind: self.kind,
            workload: self.workload.clone(),
            vertex: self.vertex.clone(),
            replica: self.replica,
        }
    }
}

/// A replica of a workload. Pods come and go in its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    namespace: String,
    kind: Kind,
    workload: String,
    vertex: String,
    replica: Replica,
}

/// What happens to watched calls of replicas that are not allowed.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is counted and nothing is rejected.
    Off,
    /// Everything is counted and nothing is rejected.
    Audit,
    /// Calls that are not allowed are rejected.
    Enforce,
}

impl Mode {
    /// As it is written in flags, config and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }
}

/// How a rejected call ends.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The source's own server answers UNIMPLEMENTED
    Unimplemented,
    /// With success and without a count, which a data plane in Rust takes without a word; UNIMPLEMENTED where that can't be proven
    /// safe (enforcer rewrite)
    #[default]
    Quiet,
}

/// What a replica's mode comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeFrom {
    /// Nothing says anything else: `--mode`, or the file's `mode`.
    #[default]
    Default,
    /// This rule of the configuration file, counted from 0 as in messages about that.
    Rule(usize),
    /// The annotation of its pod, or of its namespace.
    Annotation,
    /// It was set at run time.
    RunTime,
    /// It is audited where it would be enforced; a warning says why.
    Held,
}

impl fmt::Display for ModeFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Rule(number) => write!(f, "rule[{number}]"),
            Self::Annotation => f.write_str("annotation"),
            Self::RunTime => f.write_str("run time"),
            Self::Held => f.write_str("held"),
        }
    }
}

impl Answer {
    /// As it is written in flags, config and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unimplemented => "unimplemented",
            Self::Quiet => "quiet",
        }
    }

    /// How a call ended that was to be answered quietly.
    pub const fn of(manner: Manner) -> Self {
        match manner {
            Manner::Quiet => Self::Quiet,
            _ => Self::Unimplemented,
        }
    }
}

/// What became of a watched call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It went through.
    Admitted,
    /// It went through; enforcement would have rejected it.
    WouldReject,
    /// The source never saw it.
    Rejected,
    /// A call was seen, but not which method it called.
    Unresolved,
}

impl Verdict {
    /// The `verdict` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::WouldReject => "would_reject",
            Self::Rejected => "rejected",
            Self::Unresolved => "unresolved",
        }
    }
}

/// Rejected calls for which a quiet answer was asked, by what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quieted([u64; Manner::ALL.len()]);

impl Quieted {
    /// What the programs have counted.
    pub fn new(counts: &abi::Quieted) -> Self {
        Self(Manner::ALL.map(|manner| counts.calls[manner as usize]))
    }

    /// How many there are of each.
    pub fn counts(&self) -> impl Iterator<Item = (Manner, u64)> + '_ {
        Manner::ALL.into_iter().zip(self.0)
    }

    /// How many there are in all.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        for (n, more) in self.0.iter_mut().zip(other.0) {
            *n += more;
        }
    }
}

/// One replica on this node and what its processes called.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// Who it is.
    pub identity: Identity,
    /// The mode that applies to it.
    pub mode: Mode,
    /// What that comes from.
    pub mode_from: ModeFrom,
    /// How its rejected calls end.
    pub answer: Answer,
    /// Pids (initial namespace) of its watched processes; empty once it is gone.
    pub pids: Vec<u32>,
    /// When its first process was found.
    pub since: SystemTime,
    /// When its last process ended.
    pub gone: Option<SystemTime>,
    /// Calls by index of the method (into [`Snapshot::methods`]) and verdict. Each watched method of a living replica
    /// has at least the verdict that its next call would get, with 0; with mode off it gets none.
    pub calls: BTreeMap<(usize, Verdict), u64>,
    /// Rejected calls, by index of the method, of pods that were this replica before and are shown no more.
    pub rejected_before: BTreeMap<usize, u64>,
    /// Of the rejected calls of PendingFn, those for which a quiet answer was asked.
    pub quieted: Quieted,
    /// The same of pods that were this replica before and are shown no more.
    pub quieted_before: Quieted,
    /// Rejected calls of PendingFn in [`Self::calls`] for which none was asked; `None`: the difference.
    pub loud: Option<u64>,
    /// Calls whose method is not known.
    pub unresolved: u64,
    /// How long calls took until their answers had ended, by index of the method and how they ended.
    pub durations: BTreeMap<(usize, Code), Durations>,
    /// The same of pods that were this replica before and are shown no more.
    pub durations_before: BTreeMap<(usize, Code), Durations>,
    /// The pending count that the source answered last; -1 means that it said "unavailable".
    pub pending: Option<i64>,
    /// Connections in sync.
    pub synced: u64,
    /// Connections that lost their place.
    pub unsynced: u64,
    /// Connections that reject a method until they end, whatever the mode is by then.
    pub latched: u64,
    /// Connections that the gate stands before, each also one of those in sync.
    pub gated: u64,
    /// The tag of Numaflow's image in its pod, where the API server tells it.
    pub numaflow_version: Option<String>,
}

/// How a watch of the API server stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeWatch {
    /// What is watched, in the API's words.
    pub resource: &'static str,
    /// Whether everything was listed and is followed since.
    pub synced: bool,
    /// How often it failed, by reason; every reason is there.
    pub errors: Vec<(&'static str, u64)>,
}

/// One BPF program of the tap and whether it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Its name in the object.
    pub name: &'static str,
    /// What it attaches to (`syscalls/sys_exit_write`).
    pub hook: String,
    /// Why it isn't attached.
    pub error: Option<String>,
    /// Instructions the verifier walked, where the kernel tells (5.16).
    pub verified_instructions: Option<u32>,
    /// Times the kernel left it out because another program ran on that CPU (5.12); not known where several take turns.
    pub missed: Option<u64>,
    /// Runs and nanoseconds in it, where `kernel.bpf_stats_enabled` is on.
    pub runs: Option<(u64, u64)>,
}

/// How full a map of the programs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Its name in the object.
    pub name: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries that it has room for.
    pub max_entries: u64,
}

/// A mode that was set at run time, and which replicas it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeOverride {
    /// The mode.
    pub mode: Mode,
    /// How rejected calls end; `None`: as the configuration says.
    pub answer: Option<Answer>,
    /// Namespaces, a glob; `None` for all.
    pub namespace: Option<String>,
    /// A pod's name; `None` for all.
    pub pod: Option<String>,
}

/// The state of everything at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The node's mode: what was set at run time for every replica, else where no rule says otherwise.
    pub mode: Mode,
    /// What was set at run time; later ones win.
    pub overrides: Vec<ModeOverride>,
    /// Watched methods, full paths.
    pub methods: Vec<String>,
    /// Kind of tap in use: `tracepoint` (or `none`).
    pub tap: &'static str,
    /// Kind of enforcer in use (`rewrite` or `gate`), if there is one.
    pub enforcer: Option<&'static str>,
    /// Why there is no enforcer, where there is none.
    pub enforcer_reason: Option<String>,
    /// The tap's programs.
    pub programs: Vec<ProgramStatus>,
    /// Replicas on this node, and those that left lately.
    pub replicas: Vec<ReplicaStatus>,
    /// What could not be followed.
    pub unparsed: Vec<(Reason, u64)>,
    /// Calls that should have been rejected and went through, by reason; every reason is there.
    pub failures: Vec<(&'static str, u64)>,
    /// Events of processes or calls that were lost.
    pub events_lost: u64,
    /// Whether answers are followed; if not, no call is timed.
    pub answers: bool,
    /// How full the tap's maps are.
    pub maps: Vec<MapFill>,
    /// The watches of the API server, where replicas are discovered with it.
    pub kube: Vec<KubeWatch>,
    /// What an operator should know, in sentences.
    pub warnings: Vec<String>,
}
