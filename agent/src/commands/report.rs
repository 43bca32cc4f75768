//! What `pendguard status --json` prints. Names are fixed: scripts hold on to them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use agent_common::abi::answers::{BOUNDS, BOUNDS_NS, Code};
use serde::Serialize;

use super::clean;
use super::savings::{self, Savings};
use crate::api::client;
use crate::api::pb;
use crate::durations::Durations as Histogram;
use crate::model::Answer;

/// Everything that an agent tells.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The agent itself.
    pub agent: Agent,
    /// Whether it is ready (`/readyz`).
    pub ready: bool,
    /// Why it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// `off`, `audit` or `enforce`: the node's mode where no rule and no override says otherwise.
    pub mode: &'static str,
    /// Modes set at run time; later ones win, and all of them over the configuration file.
    pub overrides: Vec<Override>,
    /// Kind of tap: `tracepoint`, or `none`.
    pub tap: String,
    /// Kind of enforcer: `rewrite`, `gate`, or `none`.
    pub enforcer: String,
    /// Why there is no enforcer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enforcer_reason: Option<String>,
    /// Watched methods, full paths.
    pub methods: Vec<String>,
    /// BPF programs.
    pub programs: Vec<Program>,
    /// Connections of the node.
    pub connections: Connections,
    /// What could not be followed, by reason; all reasons are there.
    pub unparsed: BTreeMap<String, u64>,
    /// Calls that should have been rejected and went through, by reason; all reasons are there.
    pub enforcement_failures: BTreeMap<String, u64>,
    /// Events of processes or calls that were lost.
    pub events_lost: u64,
    /// Whether answers are followed; if not, no call is timed.
    pub answers: bool,
    /// How full the tap's maps are.
    pub maps: Vec<MapFill>,
    /// Watches of the API server by resource; none where replicas are discovered without it.
    pub kube: BTreeMap<String, KubeWatch>,
    /// What an operator should know, in sentences.
    pub warnings: Vec<String>,
    /// What enforcement saves, or would, by workload.
    pub savings: Vec<Savings>,
    /// Replicas on this node, and those that left lately.
    pub replicas: Vec<Replica>,
}

/// A watch of the API server.
#[derive(Debug, Serialize)]
pub struct KubeWatch {
    /// Whether everything was listed, and is followed since.
    pub synced: bool,
    /// How often it failed, by reason; all reasons are there.
    pub errors: BTreeMap<String, u64>,
}

/// How full a map of the programs is.
#[derive(Clone, Debug, Serialize)]
pub struct MapFill {
    /// Its name in the object.
    pub name: String,
    /// Entries in it.
    pub entries: u64,
    /// Entries that it has room for.
    pub max_entries: u64,
}

impl MapFill {
    /// What an operator should know of it, if it is nearly full.
    pub fn warning(&self) -> Option<String> {
        let Self {
            name,
            entries,
            max_entries,
        } = self;
        // In 128 bits it can't overflow, whatever the agent says.
        let percent = (u128::from(*entries) * 100).checked_div((*max_entries).into())?;
        (u128::from(*entries) * 100 > u128::from(*max_entries) * FULL).then(|| {
            format!(
                "map {} is {percent} % full ({entries} of {max_entries} entries)",
                clean(name)
            )
        })
    }
}

/// A mode set at run time, for the replicas that match all that isn't `null`.
#[derive(Debug, Serialize)]
pub struct Override {
    /// `off`, `audit` or `enforce`.
    pub mode: &'static str,
    /// `unimplemented` or `quiet`; `null`: as the configuration says.
    pub answer: Option<&'static str>,
    /// Namespaces, a glob.
    pub namespace: Option<String>,
    /// A pod's name.
    pub pod: Option<String>,
}

/// The agent itself.
#[derive(Debug, Serialize)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// The revision that it was built from, or `unknown`.
    pub revision: String,
    /// Its process id.
    pub pid: u32,
    /// When it started (RFC 3339).
    pub started: Option<String>,
    /// Seconds since then.
    pub uptime_seconds: u64,
}

/// A BPF program.
#[derive(Debug, Serialize)]
pub struct Program {
    /// Its name in the object.
    pub name: String,
    /// What it attaches to.
    pub hook: String,
    /// Whether it is attached.
    pub attached: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Instructions that the verifier walked; `null` where the kernel doesn't tell.
    pub verified_instructions: Option<u32>,
    /// Runs that the kernel left out; `null` where it doesn't tell, and where several programs take turns.
    pub missed: Option<u64>,
    /// Runs; `null` unless `kernel.bpf_stats_enabled` is on.
    pub runs: Option<u64>,
    /// Nanoseconds in it; `null` unless `kernel.bpf_stats_enabled` is on.
    pub run_nanoseconds: Option<u64>,
}

/// Connections by state.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Connections {
    /// In step with their stream.
    pub synced: u64,
    /// Out of step.
    pub unsynced: u64,
    /// Rejecting until they end; each is also one of the others.
    pub latched: u64,
    /// That the gate stands before.
    pub gated: u64,
}

/// A source replica.
#[derive(Debug, Serialize)]
pub struct Replica {
    /// Its namespace.
    pub namespace: String,
    /// `MonoVertex` or `Pipeline`.
    pub kind: &'static str,
    /// Name of the MonoVertex or Pipeline.
    pub workload: String,
    /// Name of the vertex; empty for a MonoVertex.
    pub vertex: String,
    /// Its pod.
    pub pod: String,
    /// Its number; `null` if it has none that is a number.
    pub replica: Option<u32>,
    /// The mode that applies to it.
    pub mode: &'static str,
    /// What that comes from: `default`, `rule[1]`, `annotation`, `run time` or `held`.
    pub mode_from: String,
    /// Watched processes, pids of the initial namespace.
    pub pids: Vec<u32>,
    /// When its first process was found (RFC 3339).
    pub since: Option<String>,
    /// When its last process ended (RFC 3339); `null` while it lives.
    pub gone: Option<String>,
    /// Calls of watched methods.
    pub calls: Vec<Calls>,
    /// Calls whose method is not known.
    pub unresolved: u64,
    /// Its connections.
    pub connections: Connections,
    /// How long its calls took, by method and how they ended.
    pub durations: Vec<Durations>,
    /// The pending count that the source answered last; -1 if it said "unavailable", `null` before the first answer.
    pub pending: Option<i64>,
    /// The tag of Numaflow's image in its pod; `null` where it is not known.
    pub numaflow_version: Option<String>,
    /// When its first process was found and its last one ended, to reckon with.
    #[serde(skip)]
    pub lived: (Option<SystemTime>, Option<SystemTime>),
}

/// How long calls of one method took that ended in one way.
#[derive(Debug, Serialize)]
pub struct Durations {
    /// Full path of the method.
    pub method: String,
    /// gRPC's name of the status, or `RESET`, `CONNECTION_LOST`, `UNRESOLVED`.
    pub code: String,
    /// How many.
    pub count: u64,
    /// Their mean; `null` where the agent's histogram can't be read.
    pub mean_seconds: Option<f64>,
    /// Half of them took less.
    pub p50_seconds: Option<f64>,
    /// 99 % of them took less.
    pub p99_seconds: Option<f64>,
    /// All that is known of them.
    #[serde(skip)]
    pub histogram: Histogram,
}

/// Calls of one method with one verdict.
#[derive(Debug, Serialize)]
pub struct Calls {
    /// Full path of the method.
    pub method: String,
    /// `admitted`, `would_reject` or `rejected`.
    pub verdict: &'static str,
    /// How many.
    pub count: u64,
}

impl Replica {
    /// Calls of all watched methods with one verdict.
    pub fn calls_with(&self, verdict: &str) -> u64 {
        let calls = self.calls.iter().filter(|calls| calls.verdict == verdict);
        calls.map(|calls| calls.count).sum()
    }

    /// How long its calls took, of whatever method and however they ended.
    pub fn took(&self) -> Histogram {
        let mut all = Histogram::default();
        for durations in &self.durations {
            all.add(&durations.histogram);
        }
        all
    }

    /// How calls ended that didn't end well, and how many: `UNIMPLEMENTED 77, RESET 1`.
    pub fn failures(&self) -> String {
        let mut codes: BTreeMap<&str, u64> = BTreeMap::new();
        for durations in &self.durations {
            if ![OK, QUIET].contains(&&*durations.code) && durations.count > 0 {
                *codes.entry(&durations.code).or_default() += durations.count;
            }
        }
        let codes = codes
            .iter()
            .map(|(code, count)| format!("{} {count}", clean(code)));
        codes.collect::<Vec<_>>().join(", ")
    }
}

/// How a call ends that ends well.
pub const OK: &str = Code::Ok.name();
/// How a call ends that is rejected, and that the client takes no notice of.
const QUIET: &str = Code::Quiet.name();
/// From how many percent on a map is nearly full.
const FULL: u128 = 80;

/// `admitted`, as [`Calls::verdict`] has it.
pub const ADMITTED: &str = "admitted";
/// `would_reject`, as [`Calls::verdict`] has it.
pub const WOULD_REJECT: &str = "would_reject";
/// `enforce`, as [`Replica::mode`] has it.
pub const ENFORCE: &str = "enforce";
/// `rejected`, as [`Calls::verdict`] has it.
pub const REJECTED: &str = "rejected";
/// An agent of a later version may say things that this one has no name for.
const UNKNOWN: &str = "unknown";

impl Report {
    /// An agent's answers, at the time `now`.
    pub fn new(answers: client::Report, now: SystemTime) -> Self {
        let client::Report {
            status,
            replicas,
            bucket_bounds,
        } = answers;
        let mode = mode(status.mode());
        // An agent of another version may have other buckets. What isn't ours can't be read.
        let readable = bucket_bounds == BOUNDS_NS[..BOUNDS];
        let replicas: Vec<Replica> = replicas
            .into_iter()
            .map(|of| replica(of, readable))
            .collect();
        Self {
            savings: savings::of(&replicas, now),
            answers: status.answers,
            maps: status.maps.into_iter().map(MapFill::from).collect(),
            agent: Agent {
                version: status.version,
                revision: status.revision,
                pid: status.pid,
                started: status.started.map(|time| time.to_string()),
                uptime_seconds: uptime(status.started, now).as_secs(),
            },
            ready: status.not_ready.is_empty(),
            not_ready: Some(status.not_ready).filter(|reason| !reason.is_empty()),
            mode,
            overrides: status.overrides.into_iter().map(Override::from).collect(),
            tap: status.tap,
            enforcer: status.enforcer,
            enforcer_reason: Some(status.enforcer_reason).filter(|reason| !reason.is_empty()),
            methods: status.methods,
            programs: status.programs.into_iter().map(Program::from).collect(),
            connections: connections(status.connections),
            unparsed: status
                .unparsed
                .into_iter()
                .map(|unparsed| (unparsed.reason, unparsed.count))
                .collect(),
            enforcement_failures: status
                .enforcement_failures
                .into_iter()
                .map(|failure| (failure.reason, failure.count))
                .collect(),
            events_lost: status.events_lost,
            kube: status.kube.into_iter().map(kube_watch).collect(),
            warnings: status.warnings,
            replicas,
        }
    }
}

fn kube_watch(watch: pb::KubeWatch) -> (String, KubeWatch) {
    let errors = watch.errors.into_iter();
    let errors = errors.map(|error| (error.reason, error.count)).collect();
    let synced = watch.synced;
    (watch.resource, KubeWatch { synced, errors })
}

fn uptime(started: Option<prost_types::Timestamp>, now: SystemTime) -> Duration {
    started
        .and_then(|time| SystemTime::try_from(time).ok())
        .and_then(|time| now.duration_since(time).ok())
        .unwrap_or_default()
}

/// As it is written.
pub fn answer(answer: pb::Answer) -> Option<&'static str> {
    match answer {
        pb::Answer::Unimplemented => Some(Answer::Unimplemented.name()),
        pb::Answer::Quiet => Some(Answer::Quiet.name()),
        pb::Answer::Unspecified => None,
    }
}

impl From<pb::ModeOverride> for Override {
    fn from(set: pb::ModeOverride) -> Self {
        Self {
            mode: mode(set.mode()),
            answer: answer(set.answer()),
            namespace: set.namespace,
            pod: set.pod,
        }
    }
}

impl From<pb::Program> for Program {
    fn from(program: pb::Program) -> Self {
        Self {
            name: program.name,
            hook: program.hook,
            attached: program.error.is_empty(),
            error: Some(program.error).filter(|error| !error.is_empty()),
            verified_instructions: program.verified_instructions,
            missed: program.missed,
            runs: program.runs,
            run_nanoseconds: program.run_nanoseconds,
        }
    }
}

impl From<pb::MapFill> for MapFill {
    fn from(map: pb::MapFill) -> Self {
        Self {
            name: map.name,
            entries: map.entries,
            max_entries: map.max_entries,
        }
    }
}

fn replica(replica: pb::Replica, readable: bool) -> Replica {
    let time = |time: Option<prost_types::Timestamp>| time.and_then(|time| time.try_into().ok());
    Replica {
        kind: kind(replica.kind()),
        mode: mode(replica.mode()),
        namespace: replica.namespace,
        workload: replica.workload,
        vertex: replica.vertex,
        pod: replica.pod,
        replica: replica.replica,
        pids: replica.pids,
        lived: (time(replica.since), time(replica.gone)),
        since: replica.since.map(|time| time.to_string()),
        gone: replica.gone.map(|time| time.to_string()),
        calls: replica.calls.into_iter().map(Calls::from).collect(),
        unresolved: replica.unresolved,
        connections: connections(replica.connections),
        durations: replica
            .durations
            .into_iter()
            .map(|of| durations(of, readable))
            .collect(),
        pending: replica.pending,
        mode_from: replica.mode_from,
        numaflow_version: Some(replica.numaflow_version).filter(|version| !version.is_empty()),
    }
}

fn durations(durations: pb::Durations, readable: bool) -> Durations {
    let count = durations.buckets.iter().sum();
    let histogram = Some(&durations)
        .filter(|_| readable)
        .and_then(histogram)
        .unwrap_or_default();
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
    Durations {
        count,
        mean_seconds: seconds(histogram.mean()),
        p50_seconds: seconds(histogram.quantile(0.5)),
        p99_seconds: seconds(histogram.quantile(0.99)),
        histogram,
        method: durations.method,
        code: durations.code,
    }
}

/// An agent's histogram, if it has no more buckets than there are.
fn histogram(durations: &pb::Durations) -> Option<Histogram> {
    Histogram::new(&durations.buckets, durations.sum_nanoseconds)
}

impl From<pb::Calls> for Calls {
    fn from(calls: pb::Calls) -> Self {
        Self {
            verdict: verdict(calls.verdict()),
            method: calls.method,
            count: calls.count,
        }
    }
}

fn connections(connections: Option<pb::Connections>) -> Connections {
    connections.map_or_else(Connections::default, |connections| Connections {
        synced: connections.synced,
        unsynced: connections.unsynced,
        latched: connections.latched,
        gated: connections.gated,
    })
}

/// The name of a verdict.
pub fn verdict(verdict: pb::Verdict) -> &'static str {
    match verdict {
        pb::Verdict::Admitted => ADMITTED,
        pb::Verdict::WouldReject => WOULD_REJECT,
        pb::Verdict::Rejected => REJECTED,
        pb::Verdict::Unspecified => UNKNOWN,
    }
}

/// The name of a kind of workload.
pub fn kind(kind: pb::Kind) -> &'static str {
    match kind {
        pb::Kind::MonoVertex => "MonoVertex",
        pb::Kind::Pipeline => "Pipeline",
        pb::Kind::Unspecified => UNKNOWN,
    }
}

/// The name of a mode.
pub fn mode(mode: pb::Mode) -> &'static str {
    match mode {
        pb::Mode::Off => "off",
        pb::Mode::Audit => "audit",
        pb::Mode::Enforce => "enforce",
        pb::Mode::Unspecified => UNKNOWN,
    }
}
