//! What the agent knows of the node, as plain data: made by discovery and the inventory, read by the exporters.

use std::collections::BTreeMap;
use std::time::SystemTime;

use agent_common::abi::Reason;

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

impl std::fmt::Display for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Unknown => f.write_str("unknown"),
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

/// What became of a watched call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It went through.
    Admitted,
    /// It went through; enforcement would have rejected it.
    WouldReject,
    /// A call was seen, but not which method it called.
    Unresolved,
}

impl Verdict {
    /// The `verdict` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::WouldReject => "would_reject",
            Self::Unresolved => "unresolved",
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
    /// Pids (initial namespace) of its watched processes; empty once it is gone.
    pub pids: Vec<u32>,
    /// When its first process was found.
    pub since: SystemTime,
    /// When its last process ended.
    pub gone: Option<SystemTime>,
    /// Calls by index of the method (into [`Snapshot::methods`]) and verdict. Each watched method of a living replica
    /// has at least the verdict that its next call would get, with 0.
    pub calls: BTreeMap<(usize, Verdict), u64>,
    /// Calls whose method is not known.
    pub unresolved: u64,
    /// Connections in sync.
    pub synced: u64,
    /// Connections that lost their place.
    pub unsynced: u64,
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
    /// Times the kernel left it out because another program ran on that CPU (5.12).
    pub missed: Option<u64>,
    /// Runs and nanoseconds in it, where `kernel.bpf_stats_enabled` is on.
    pub runs: Option<(u64, u64)>,
}

/// The state of everything at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The node's mode where no rule says otherwise.
    pub mode: Mode,
    /// Watched methods, full paths.
    pub methods: Vec<String>,
    /// Kind of tap in use: `tracepoint` (or `none`).
    pub tap: &'static str,
    /// The tap's programs.
    pub programs: Vec<ProgramStatus>,
    /// Replicas on this node, and those that left lately.
    pub replicas: Vec<ReplicaStatus>,
    /// What could not be followed.
    pub unparsed: Vec<(Reason, u64)>,
    /// Events of processes or calls that were lost.
    pub events_lost: u64,
    /// What an operator should know, in sentences.
    pub warnings: Vec<String>,
}
