//! Who asks needlessly, how often, and what it costs.

use super::{Kind, Panel, Query, Row, Unit};

pub const ROW: Row = Row {
    title: "Overview",
    panels: &[
        Panel {
            title: "Useless calls that reach sources",
            description: "PendingFn calls per hour that replicas other than 0 make and that their sources answer, though Numaflow throws the answer away. \
                          0 is what you want. More than that: upgrade Numaflow, or let Pendguard enforce.",
            kind: Kind::Stat {
                empty: "no data",
                alarm: Some((1.0, "orange")),
            },
            unit: Unit::CallsPerHour,
            queries: &[Query::new(
                r#"(sum(workload:pendguard_calls:rate5m{verdict="would_reject",<of>}) or 0 * sum(workload:pendguard_calls:rate5m{<of>})) * 3600"#,
                "",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Their time at the source, per hour",
            description: "How long sources work in each hour on answers that nobody uses: useless calls times the mean duration of a call that is answered OK. \
                          More than an hour per hour means that several calls are answered at once.",
            kind: Kind::Stat {
                empty: "no durations",
                alarm: Some((60.0, "orange")),
            },
            unit: Unit::SecondsPerHour,
            queries: &[Query::new(
                "(sum(workload:pendguard_useless_call_seconds:rate5m{<of>}) or 0 * sum(workload:pendguard_call_duration_seconds:mean5m{<of>})) * 3600",
                "",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Useless calls that are rejected",
            description: "The share of all useless calls that Pendguard keeps from the sources. 0 % in mode audit, where everything goes through; \
                          near 100 % where every replica is enforced.",
            kind: Kind::Stat {
                empty: "no useless calls",
                alarm: None,
            },
            unit: Unit::Share,
            queries: &[Query::new(
                r#"(sum(workload:pendguard_calls:rate5m{verdict="rejected",<of>}) or 0 * sum(workload:pendguard_calls:rate5m{<of>})) / (sum(workload:pendguard_calls:rate5m{verdict=~"rejected|would_reject",<of>}) > 0)"#,
                "",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Replicas by mode",
            description: "Source replicas that are alive on nodes with an agent, by the mode that applies to them. \
                          Replicas that are missing here run on a node without an agent.",
            kind: Kind::Stat {
                empty: "no replicas",
                alarm: None,
            },
            unit: Unit::Count,
            queries: &[Query::new(
                r#"sum by (mode) (pendguard_replicas{namespace=~"$namespace"})"#,
                "{{mode}}",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Useless calls by workload",
            description: "Where the useless calls come from: PendingFn calls per hour of replicas other than 0 that reach the source. \
                          A workload whose Numaflow was upgraded, or that is enforced, falls to 0.",
            kind: Kind::Lines,
            unit: Unit::CallsPerHour,
            queries: &[Query::new(
                r#"sum by (namespace, workload, vertex) (workload:pendguard_calls:rate5m{verdict="would_reject",<of>}) * 3600"#,
                "{{namespace}}/{{workload}} {{vertex}}",
            )],
            size: (12, 8),
        },
        Panel {
            title: "Time of useless calls at the source, by workload",
            description: "What the useless calls cost each source: seconds of work per hour (calls times the mean duration of an OK answer). \
                          The workload on top gains most from an upgrade or from enforcement, even if others make more calls.",
            kind: Kind::Lines,
            unit: Unit::SecondsPerHour,
            queries: &[Query::new(
                "sum by (namespace, workload, vertex) (workload:pendguard_useless_call_seconds:rate5m{<of>}) * 3600",
                "{{namespace}}/{{workload}} {{vertex}}",
            )],
            size: (12, 8),
        },
        Panel {
            title: "Calls by verdict",
            description: "All watched calls. admitted: the one replica that may ask. would_reject: useless, and went through. rejected: useless, and kept from the source. \
                          unresolved: seen, but the connection is older than the agent, so nobody knows which method it was.",
            kind: Kind::Stacked,
            unit: Unit::CallsPerSecond,
            queries: &[Query::new(
                "sum by (verdict) (rate(pendguard_calls_total{<of>}[$__rate_interval]))",
                "{{verdict}}",
            )],
            size: (12, 8),
        },
        Panel {
            title: "Share of useless calls rejected, by workload",
            description: "Of the useless calls of each workload, the share that is kept from its source. A workload that is enforced is at 100 %; \
                          one that stays below has replicas that are not enforced, or calls that can't be rejected (see enforcement failures below).",
            kind: Kind::Lines,
            unit: Unit::Share,
            queries: &[Query::new(
                r#"(sum by (namespace, workload, vertex) (workload:pendguard_calls:rate5m{verdict="rejected",<of>}) or 0 * sum by (namespace, workload, vertex) (workload:pendguard_calls:rate5m{<of>})) / (sum by (namespace, workload, vertex) (workload:pendguard_calls:rate5m{verdict=~"rejected|would_reject",<of>}) > 0)"#,
                "{{namespace}}/{{workload}} {{vertex}}",
            )],
            size: (12, 8),
        },
    ],
};
