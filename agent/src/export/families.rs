//! What is exported: the names, labels and meaning of every metric. The metrics and their reference are made from it.
#![forbid(unsafe_code)]

/// What is documented of a metric, and exported with it.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// How its values behave.
    pub kind: FamilyKind,
    /// What it counts.
    pub help: &'static str,
    /// What one of it is: `seconds`, or things that are counted; empty where the value says nothing.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
}

/// How the values of a metric behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// They only grow, until the agent is restarted.
    Counter,
    /// They come and go.
    Gauge,
    /// Counters by size, their number and their sum.
    Histogram,
}

impl FamilyKind {
    /// As Prometheus writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

pub(super) const CALLS: Family = Family {
    name: "pendguard_calls_total",
    kind: FamilyKind::Counter,
    help: "Calls of watched methods that a source replica of this node made, by what became of them: admitted, \
           would_reject (audit: enforcement would have rejected it), rejected, or unresolved (seen, but not which method; method \
           is then empty).",
    unit: "calls",
    labels: &[
        "namespace",
        "kind",
        "workload",
        "vertex",
        "pod",
        "replica",
        "method",
        "verdict",
    ],
};
pub(super) const DURATION: Family = Family {
    name: "pendguard_call_duration_seconds",
    kind: FamilyKind::Histogram,
    help: "How long calls of watched methods took, from the request to the end of the answer, by how they ended (code). Calls \
           without an answer yet, and those whose method is not known, are not in it.",
    unit: "seconds",
    labels: &[
        "namespace",
        "kind",
        "workload",
        "vertex",
        "replica",
        "method",
        "code",
    ],
};
pub(super) const PENDING: Family = Family {
    name: "pendguard_source_pending",
    kind: FamilyKind::Gauge,
    help: "The pending count that the source answered last; -1 means that it said it has none to tell. It is there once a \
           replica that is alive has been answered.",
    unit: "messages",
    labels: &["namespace", "kind", "workload", "vertex", "replica"],
};
pub(super) const REJECTIONS: Family = Family {
    name: "pendguard_rejections_total",
    kind: FamilyKind::Counter,
    help: "Calls of watched methods that were rejected, by how they ended (answer) and why so (reason).",
    unit: "calls",
    labels: &[
        "namespace",
        "kind",
        "workload",
        "vertex",
        "replica",
        "method",
        "answer",
        "reason",
    ],
};
pub(super) const FAILURES: Family = Family {
    name: "pendguard_enforcement_failures_total",
    kind: FamilyKind::Counter,
    help: "Calls that should have been rejected and went through, by reason. They are counted as admitted, too.",
    unit: "calls",
    labels: &["reason"],
};
pub(super) const REPLICAS: Family = Family {
    name: "pendguard_replicas",
    kind: FamilyKind::Gauge,
    help: "Source replicas alive on this node, by the mode that applies to them.",
    unit: "replicas",
    labels: &["namespace", "mode"],
};
pub(super) const CONNECTIONS: Family = Family {
    name: "pendguard_connections",
    kind: FamilyKind::Gauge,
    help: "HTTP/2 connections of watched processes: synced (each call is counted by its method), unsynced (out of step, \
           picked up again where framing allows); latched are those of them that reject a method until they end, \
           whatever the mode is by then, and gated those that the gate stands before.",
    unit: "connections",
    labels: &["state"],
};
pub(super) const UNPARSED: Family = Family {
    name: "pendguard_unparsed_total",
    kind: FamilyKind::Counter,
    help: "Times that something a watched process sent could not be followed, by reason. It has no effect on the traffic.",
    unit: "times",
    labels: &["reason"],
};
pub(super) const EVENTS_LOST: Family = Family {
    name: "pendguard_events_lost_total",
    kind: FamilyKind::Counter,
    help: "Events of processes or calls that the agent could not take from the kernel in time. Calls are counted all the \
           same; a replica may be found late.",
    unit: "events",
    labels: &[],
};
pub(super) const MAP_ENTRIES: Family = Family {
    name: "pendguard_map_entries",
    kind: FamilyKind::Gauge,
    help: "Entries in each of the agent's BPF maps that may fill up.",
    unit: "entries",
    labels: &["map"],
};
pub(super) const MAP_MAX_ENTRIES: Family = Family {
    name: "pendguard_map_max_entries",
    kind: FamilyKind::Gauge,
    help: "Entries that each of the agent's BPF maps has room for.",
    unit: "entries",
    labels: &["map"],
};
pub(super) const OTLP_FAILURES: Family = Family {
    name: "pendguard_otlp_failures_total",
    kind: FamilyKind::Counter,
    help: "Times that metrics were sent over OTLP and did not arrive, or not all of them. It is there only with --otlp-endpoint.",
    unit: "failures",
    labels: &[],
};
pub(super) const REPLICA_INFO: Family = Family {
    name: "pendguard_replica_info",
    kind: FamilyKind::Gauge,
    help: "Which Numaflow each living replica's pod has, by the tag of its image; the value is always 1. It is there only with \
           discovery kube.",
    unit: "",
    labels: &[
        "namespace",
        "kind",
        "workload",
        "vertex",
        "pod",
        "replica",
        "numaflow_version",
    ],
};
pub(super) const KUBE_SYNCED: Family = Family {
    name: "pendguard_kube_synced",
    kind: FamilyKind::Gauge,
    help: "1 while the agent follows what the API server has of a resource, 0 while it goes on with what it knew. It is there only \
           with discovery kube.",
    unit: "",
    labels: &["resource"],
};
pub(super) const KUBE_ERRORS: Family = Family {
    name: "pendguard_kube_watch_errors_total",
    kind: FamilyKind::Counter,
    help: "Times that listing or watching a resource of the API server failed, by reason. It is there only with discovery kube.",
    unit: "errors",
    labels: &["resource", "reason"],
};
pub(super) const TAP_INFO: Family = Family {
    name: "pendguard_tap_info",
    kind: FamilyKind::Gauge,
    help: "How sends are observed on this node; the value is always 1.",
    unit: "",
    labels: &["kind"],
};
pub(super) const ENFORCER_INFO: Family = Family {
    name: "pendguard_enforcer_info",
    kind: FamilyKind::Gauge,
    help: "How calls are rejected on this node: rewrite, gate or none; the value is always 1.",
    unit: "",
    labels: &["kind"],
};
pub(super) const BUILD_INFO: Family = Family {
    name: "pendguard_build_info",
    kind: FamilyKind::Gauge,
    help: "Version, revision and compiler of the agent; the value is always 1.",
    unit: "",
    labels: &["version", "revision", "rustc"],
};
pub(super) const PROGRAM_SECONDS: Family = Family {
    name: "pendguard_program_run_seconds_total",
    kind: FamilyKind::Counter,
    help: "Seconds spent in each of the agent's BPF programs, by the kernel's own accounting. It is there only while the \
           sysctl kernel.bpf_stats_enabled is on.",
    unit: "seconds",
    labels: &["program"],
};
pub(super) const PROGRAM_RUNS: Family = Family {
    name: "pendguard_program_runs_total",
    kind: FamilyKind::Counter,
    help: "Runs of each of the agent's BPF programs, by the kernel's own accounting. It is there only while the sysctl \
           kernel.bpf_stats_enabled is on.",
    unit: "runs",
    labels: &["program"],
};

/// All metrics that this version exports; the reference is made from it.
pub const FAMILIES: &[Family] = &[
    CALLS,
    DURATION,
    PENDING,
    REJECTIONS,
    FAILURES,
    REPLICAS,
    REPLICA_INFO,
    CONNECTIONS,
    UNPARSED,
    EVENTS_LOST,
    MAP_ENTRIES,
    MAP_MAX_ENTRIES,
    OTLP_FAILURES,
    KUBE_SYNCED,
    KUBE_ERRORS,
    TAP_INFO,
    ENFORCER_INFO,
    BUILD_INFO,
    PROGRAM_SECONDS,
    PROGRAM_RUNS,
];
