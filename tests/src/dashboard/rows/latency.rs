//! How fast sources answer.

use super::{Kind, Panel, Query, Row, Unit};

/// Of a workload's calls, the time in which this share is answered.
macro_rules! quantile {
    ($quantile:literal) => {
        concat!(
            "histogram_quantile(",
            $quantile,
            ", sum by (namespace, workload, vertex, le) (workload:pendguard_call_duration_seconds_bucket:rate5m{<of>}))"
        )
    };
}

pub const ROW: Row = Row {
    title: "Latency",
    panels: &[
        Panel {
            title: "Time to answer, by workload",
            description: "How long sources take to answer PendingFn with OK: half of the calls are faster than p50, 9 of 10 faster than p90, 99 of 100 faster than p99. \
                          Buckets are 1, 2.5 and 5 times a power of ten, so values between are estimates. Rejected calls are not in it.",
            kind: Kind::Lines,
            unit: Unit::Seconds,
            queries: &[
                Query::new(
                    quantile!("0.5"),
                    "{{namespace}}/{{workload}} {{vertex}} p50",
                ),
                Query::new(
                    quantile!("0.9"),
                    "{{namespace}}/{{workload}} {{vertex}} p90",
                ),
                Query::new(
                    quantile!("0.99"),
                    "{{namespace}}/{{workload}} {{vertex}} p99",
                ),
            ],
            size: (12, 9),
        },
        Panel {
            title: "Durations",
            description: "All calls that were answered OK, by how long it took: the darker, the more calls. Two bands far apart are often a source that caches its answer, \
                          or one workload that is slower than the others: choose it above.",
            kind: Kind::HeatMap,
            unit: Unit::Seconds,
            queries: &[Query::new(
                r#"sum by (le) (increase(pendguard_call_duration_seconds_bucket{code="OK",<of>}[$__rate_interval]))"#,
                "{{le}}",
            )],
            size: (12, 9),
        },
        Panel {
            title: "Mean time to answer, by workload",
            description: "The mean duration of calls that were answered OK. This is what the times at the source and the savings on this dashboard are reckoned with.",
            kind: Kind::Lines,
            unit: Unit::Seconds,
            queries: &[Query::new(
                "avg by (namespace, workload, vertex) (workload:pendguard_call_duration_seconds:mean5m{<of>})",
                "{{namespace}}/{{workload}} {{vertex}}",
            )],
            size: (12, 8),
        },
        Panel {
            title: "Answers by code",
            description: "How calls ended, by gRPC status. UNIMPLEMENTED and QUIET are how rejected calls end, and are harmless. \
                          All others but OK come from the source itself: UNAVAILABLE or DEADLINE_EXCEEDED mean that it is in trouble.",
            kind: Kind::Stacked,
            unit: Unit::CallsPerSecond,
            queries: &[Query::new(
                "sum by (code) (rate(pendguard_call_duration_seconds_count{<of>}[$__rate_interval]))",
                "{{code}}",
            )],
            size: (12, 8),
        },
    ],
};
