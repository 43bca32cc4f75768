//! What enforcement saves, or would save.

use super::{Kind, Panel, Query, Row, Unit};

pub const ROW: Row = Row {
    title: "Savings",
    panels: &[
        Panel {
            title: "Saved per hour",
            description: "The time that sources are spared in each hour, because useless calls are rejected: rejected calls times the mean duration of an OK answer. \
                          An estimate, since a rejected call has no duration of its own at the source.",
            kind: Kind::Stat {
                empty: "no durations",
                alarm: None,
            },
            unit: Unit::SecondsPerHour,
            queries: &[Query::new(
                "(sum(workload:pendguard_saved_call_seconds:rate5m{<of>}) or 0 * sum(workload:pendguard_call_duration_seconds:mean5m{<of>})) * 3600",
                "",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Calls spared per hour",
            description: "Calls per hour that were rejected, and so did not reach a source or the system behind it. \
                          If that system bills by request, this is what is off the bill.",
            kind: Kind::Stat {
                empty: "no data",
                alarm: None,
            },
            unit: Unit::CallsPerHour,
            queries: &[Query::new(
                r#"(sum(workload:pendguard_calls:rate5m{verdict="rejected",<of>}) or 0 * sum(workload:pendguard_calls:rate5m{<of>})) * 3600"#,
                "",
            )],
            size: (6, 4),
        },
        Panel {
            title: "Savings by workload, per hour",
            description: "For each workload, per hour: useless calls that were rejected and that went through, the time of the source that rejecting saved, \
                          and the time that enforcing the rest would save. Sort by the last column to see where to enforce next.",
            kind: Kind::Table,
            unit: Unit::CallsPerHour,
            queries: &[
                Query::new(
                    r#"sum by (namespace, workload, vertex) (workload:pendguard_calls:rate5m{verdict="rejected",<of>}) * 3600"#,
                    "rejected",
                ),
                Query::new(
                    r#"sum by (namespace, workload, vertex) (workload:pendguard_calls:rate5m{verdict="would_reject",<of>}) * 3600"#,
                    "useless, went through",
                ),
                Query::new(
                    "sum by (namespace, workload, vertex) (workload:pendguard_saved_call_seconds:rate5m{<of>}) * 3600",
                    "saved",
                )
                .unit(Unit::Seconds),
                Query::new(
                    "sum by (namespace, workload, vertex) (workload:pendguard_useless_call_seconds:rate5m{<of>}) * 3600",
                    "would be saved",
                )
                .unit(Unit::Seconds),
            ],
            size: (12, 12),
        },
        Panel {
            title: "Saved and to be saved, per hour",
            description: "The time of sources per hour that enforcement saves, and what it would save besides if every useless call were rejected. \
                          When a workload is switched from audit to enforce, its part moves from the one to the other.",
            kind: Kind::Stacked,
            unit: Unit::SecondsPerHour,
            queries: &[
                Query::new(
                    "sum(workload:pendguard_saved_call_seconds:rate5m{<of>}) * 3600",
                    "saved",
                ),
                Query::new(
                    "sum(workload:pendguard_useless_call_seconds:rate5m{<of>}) * 3600",
                    "would be saved",
                ),
            ],
            size: (12, 8),
        },
    ],
};
