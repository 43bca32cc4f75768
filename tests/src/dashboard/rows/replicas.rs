//! Which replicas ask.

use super::{Kind, Panel, Query, Row, Unit};

pub const ROW: Row = Row {
    title: "Replicas",
    panels: &[
        Panel {
            title: "Calls of each replica",
            description: "How often each replica asks its source what is pending, whether it is let through or not: the darker, the more often. With an old Numaflow all lines \
                          of a workload look alike; with one that asks from replica 0 only, just the line of replica 0 has a colour.",
            kind: Kind::Cells,
            unit: Unit::CallsPerMinute,
            queries: &[Query::new(
                r#"sum by (namespace, workload, vertex, replica) (rate(pendguard_calls_total{verdict!="unresolved",<of>}[$__rate_interval])) * 60"#,
                "{{workload}} {{vertex}} {{replica}}",
            )],
            size: (12, 9),
        },
        Panel {
            title: "Calls of each replica that reach the source",
            description: "The same without the calls that were rejected: what the sources really have to answer. Where a workload is enforced, \
                          only the line of replica 0 keeps its colour; any other line with a colour costs the source for nothing.",
            kind: Kind::Cells,
            unit: Unit::CallsPerMinute,
            queries: &[Query::new(
                r#"sum by (namespace, workload, vertex, replica) (rate(pendguard_calls_total{verdict=~"admitted|would_reject",<of>}[$__rate_interval])) * 60"#,
                "{{workload}} {{vertex}} {{replica}}",
            )],
            size: (12, 9),
        },
        Panel {
            title: "Rejected calls by replica",
            description: "Calls that enforcement kept from the source, by the replica that made them. A line of replica 0 must never appear here: \
                          if it does, Numaflow gets no pending count and does not scale; run `pendguard mode off` and report it.",
            kind: Kind::Lines,
            unit: Unit::CallsPerMinute,
            queries: &[Query::new(
                "sum by (namespace, workload, vertex, replica) (rate(pendguard_rejections_total{<of>}[$__rate_interval])) * 60",
                "{{workload}} {{vertex}} {{replica}}",
            )],
            size: (24, 7),
        },
    ],
};
