//! What sources answer.

use super::{Kind, Panel, Query, Row, Unit};

pub const ROW: Row = Row {
    title: "Pending",
    panels: &[
        Panel {
            title: "Pending, as the sources answered",
            description: "The last value that each replica's source answered. Numaflow scales by what replica 0 gets. Replicas that are rejected get no answer: \
                          their value stays where it was. A negative value is a source that can't tell.",
            kind: Kind::Lines,
            unit: Unit::Count,
            queries: &[Query::new(
                "max by (namespace, workload, vertex, replica) (pendguard_source_pending{<of>})",
                "{{workload}} {{vertex}} {{replica}}",
            )],
            size: (16, 8),
        },
        Panel {
            title: "Pending of replica 0",
            description: "What Numaflow scales each workload by: the last value that the source of replica 0 answered. \
                          A value that grows while the replicas are at their maximum is a backlog.",
            kind: Kind::Stat {
                empty: "no answer seen",
                alarm: None,
            },
            unit: Unit::Count,
            queries: &[Query::new(
                r#"max by (namespace, workload, vertex) (pendguard_source_pending{replica="0",<of>})"#,
                "{{namespace}}/{{workload}} {{vertex}}",
            )],
            size: (8, 8),
        },
    ],
};
