//! Whether the agents are well, and what they cost.

use super::{Kind, Panel, Query, Row, Unit};

pub const ROW: Row = Row {
    title: "Agents",
    panels: &[
        Panel {
            title: "Agents",
            description: "Agents that answer Prometheus, by version. It should be the number of nodes with source pods; calls on a node without an agent are not counted, \
                          though what an agent has pinned for enforcement goes on until its lease ends.",
            kind: Kind::Stat {
                empty: "none",
                alarm: None,
            },
            unit: Unit::Count,
            queries: &[Query::new(
                "count by (version) (pendguard_build_info)",
                "{{version}}",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Tap in use",
            description: "How sends are observed, and on how many nodes. fentry is cheaper; tracepoint is what is left where the kernel does not allow fentry. \
                          `pendguard doctor` on the node says why.",
            kind: Kind::Names,
            unit: Unit::Count,
            queries: &[Query::new(
                "count by (kind) (pendguard_tap_info)",
                "{{kind}}",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Enforcer in use",
            description: "How calls are rejected, and on how many nodes. none: nothing was to be enforced there since the agent began. \
                          `pendguard doctor` on the node says what it could use.",
            kind: Kind::Names,
            unit: Unit::Count,
            queries: &[Query::new(
                "count by (kind) (pendguard_enforcer_info)",
                "{{kind}}",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Recording rules",
            description: "How many series Prometheus records for this dashboard. If there are none, it has not loaded Pendguard's rules (deploy/prometheus/rules.yaml), \
                          and most of the panels above stay empty.",
            kind: Kind::Stat {
                empty: "rules.yaml is not loaded",
                alarm: None,
            },
            unit: Unit::Count,
            queries: &[Query::new(
                "count(workload:pendguard_calls:rate5m{<of>})",
                "",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Connections by state",
            description: "HTTP/2 connections of source pods. synced: each call is counted by its method. unsynced: out of step, not counted for the moment. \
                          latched: reject until they close, whatever the mode is by then. gated: the gate stands before them. The last two are also one of the first.",
            kind: Kind::Lines,
            unit: Unit::Count,
            queries: &[Query::new(
                "sum by (state) (pendguard_connections)",
                "{{state}}",
            )],
            size: (12, 8),
        },
        Panel {
            title: "Unresolved calls by workload",
            description: "Calls of connections that are older than the agent, whose method can't be known. They are never rejected. \
                          They end when the data plane connects anew: restart the pod if you can't wait.",
            kind: Kind::Lines,
            unit: Unit::CallsPerSecond,
            queries: &[Query::new(
                r#"sum by (namespace, workload, vertex) (rate(pendguard_calls_total{verdict="unresolved",<of>}[$__rate_interval]))"#,
                "{{namespace}}/{{workload}} {{vertex}}",
            )],
            size: (12, 8),
        },
        Panel {
            title: "Not parsed, by reason",
            description: "How often something that a watched process sent could not be followed. It has no effect on the traffic, but calls may be missing from the counts. \
                          tls: the pod encrypts to its source, so Pendguard can't help there.",
            kind: Kind::Lines,
            unit: Unit::PerSecond,
            queries: &[Query::new(
                "sum by (reason) (rate(pendguard_unparsed_total[$__rate_interval]))",
                "{{reason}}",
            )],
            size: (8, 8),
        },
        Panel {
            title: "Events lost",
            description: "Events of processes and calls that agents could not take from the kernel in time, or that the kernel skipped. A few are harmless; \
                          many make counts too low and let calls show as unresolved.",
            kind: Kind::Lines,
            unit: Unit::PerSecond,
            queries: &[Query::new(
                "sum by (instance) (rate(pendguard_events_lost_total[$__rate_interval]))",
                "{{instance}}",
            )],
            size: (8, 8),
        },
        Panel {
            title: "Enforcement failures, by reason",
            description: "Calls that should have been rejected and reached the source. joining and busy are normal for moments, when a connection or enforcement begins. \
                          Other reasons that last: look them up in ARCHITECTURE.md.",
            kind: Kind::Lines,
            unit: Unit::CallsPerSecond,
            queries: &[Query::new(
                "sum by (reason) (rate(pendguard_enforcement_failures_total[$__rate_interval]))",
                "{{reason}}",
            )],
            size: (8, 8),
        },
        Panel {
            title: "CPU of the BPF programs",
            description: "The share of one CPU that Pendguard's programs take, over all nodes, by program. The kernel accounts for it only while the sysctl \
                          kernel.bpf_stats_enabled is 1, which costs a little itself; otherwise this is empty.",
            kind: Kind::Stacked,
            unit: Unit::Share,
            queries: &[Query::new(
                "sum by (program) (rate(pendguard_program_run_seconds_total[$__rate_interval]))",
                "{{program}}",
            )],
            size: (8, 8),
        },
        Panel {
            title: "Time per run of a BPF program",
            description: "The mean time of one run of each program: what a send of a watched process takes longer: some hundred nanoseconds, unless the node is overloaded. \
                          Empty unless the sysctl kernel.bpf_stats_enabled is 1.",
            kind: Kind::Lines,
            unit: Unit::Seconds,
            queries: &[Query::new(
                "sum by (program) (rate(pendguard_program_run_seconds_total[$__rate_interval])) / (sum by (program) (rate(pendguard_program_runs_total[$__rate_interval])) > 0)",
                "{{program}}",
            )],
            size: (8, 8),
        },
        Panel {
            title: "Fill of the BPF maps",
            description: "How full the kernel's tables are on the node where each is fullest. At 100 % new processes or connections of that kind are not followed, \
                          or are not enforced.",
            kind: Kind::Lines,
            unit: Unit::Share,
            queries: &[Query::new(
                "max by (map) (pendguard_map_entries / pendguard_map_max_entries)",
                "{{map}}",
            )],
            size: (8, 8),
        },
    ],
};
