//! The snapshot as Prometheus metrics.
//!
//! The families are made anew for each scrape: a replica that left takes its series with it, and nothing has to be kept in
//! step.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use agent_common::abi::Reason;
use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::NONE;
use crate::model::{Answer, Identity, Kind, Replica, Snapshot, Verdict};
use crate::version;

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is documented of a metric, and exported with it.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// How its values behave.
    pub kind: FamilyKind,
    /// What it counts, and in what unit.
    pub help: &'static str,
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
}

impl FamilyKind {
    /// As Prometheus writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

const CALLS: Family = Family {
    name: "pendguard_calls_total",
    kind: FamilyKind::Counter,
    help: "Calls of watched methods that a source replica of this node made, by what became of them: admitted, \
           would_reject (audit: enforcement would have rejected it), rejected, or unresolved (seen, but not which method; method \
           is then empty).",
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
const REJECTIONS: Family = Family {
    name: "pendguard_rejections_total",
    kind: FamilyKind::Counter,
    help: "Calls of watched methods that were rejected, by how they ended (answer) and why (reason: policy).",
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
const FAILURES: Family = Family {
    name: "pendguard_enforcement_failures_total",
    kind: FamilyKind::Counter,
    help: "Calls that should have been rejected and went through, by reason: candidate (made before the agent knew whose \
           they were). They are counted as admitted, too.",
    labels: &["reason"],
};
const REPLICAS: Family = Family {
    name: "pendguard_replicas",
    kind: FamilyKind::Gauge,
    help: "Source replicas alive on this node, by the mode that applies to them.",
    labels: &["namespace", "mode"],
};
const CONNECTIONS: Family = Family {
    name: "pendguard_connections",
    kind: FamilyKind::Gauge,
    help: "HTTP/2 connections of watched processes: synced (each call is counted by its method), unsynced (out of step, \
           picked up again where framing allows); latched are those of them that reject a method until they end, \
           whatever the mode is by then, and gated those that the gate stands before.",
    labels: &["state"],
};
const UNPARSED: Family = Family {
    name: "pendguard_unparsed_total",
    kind: FamilyKind::Counter,
    help: "Times that something a watched process sent could not be followed, by reason. It has no effect on the traffic.",
    labels: &["reason"],
};
const EVENTS_LOST: Family = Family {
    name: "pendguard_events_lost_total",
    kind: FamilyKind::Counter,
    help: "Events of processes or calls that the agent could not take from the kernel in time. Calls are counted all the \
           same; a replica may be found late.",
    labels: &[],
};
const TAP_INFO: Family = Family {
    name: "pendguard_tap_info",
    kind: FamilyKind::Gauge,
    help: "How sends are observed on this node; the value is always 1.",
    labels: &["kind"],
};
const ENFORCER_INFO: Family = Family {
    name: "pendguard_enforcer_info",
    kind: FamilyKind::Gauge,
    help: "How calls are rejected on this node: rewrite, gate or none; the value is always 1.",
    labels: &["kind"],
};
const BUILD_INFO: Family = Family {
    name: "pendguard_build_info",
    kind: FamilyKind::Gauge,
    help: "Version, revision and compiler of the agent; the value is always 1.",
    labels: &["version", "revision", "rustc"],
};
const PROGRAM_SECONDS: Family = Family {
    name: "pendguard_program_run_seconds_total",
    kind: FamilyKind::Counter,
    help: "Seconds spent in each of the agent's BPF programs, by the kernel's own accounting. It is there only while the \
           sysctl kernel.bpf_stats_enabled is on.",
    labels: &["program"],
};
const PROGRAM_RUNS: Family = Family {
    name: "pendguard_program_runs_total",
    kind: FamilyKind::Counter,
    help: "Runs of each of the agent's BPF programs, by the kernel's own accounting. It is there only while the sysctl \
           kernel.bpf_stats_enabled is on.",
    labels: &["program"],
};

/// All metrics that this version exports; the reference is made from it.
pub const FAMILIES: &[Family] = &[
    CALLS,
    REJECTIONS,
    FAILURES,
    REPLICAS,
    CONNECTIONS,
    UNPARSED,
    EVENTS_LOST,
    TAP_INFO,
    ENFORCER_INFO,
    BUILD_INFO,
    PROGRAM_SECONDS,
    PROGRAM_RUNS,
];

/// The metrics of a snapshot in Prometheus' text format.
pub fn render(snapshot: &Snapshot) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&families(snapshot))
}

/// The metrics of a snapshot. A family without a series is left out.
pub fn families(snapshot: &Snapshot) -> Vec<MetricFamily> {
    [
        calls(snapshot),
        rejections(snapshot),
        failures(snapshot),
        replicas(snapshot),
        connections(snapshot),
        unparsed(snapshot),
        Series::new(EVENTS_LOST).one(&[], snapshot.events_lost as f64),
        Series::new(TAP_INFO).one(&[snapshot.tap], 1.0),
        Series::new(ENFORCER_INFO).one(&[snapshot.enforcer.unwrap_or(NONE)], 1.0),
        Series::new(BUILD_INFO).one(&[version::VERSION, version::REVISION, version::RUSTC], 1.0),
        programs(snapshot, PROGRAM_SECONDS, |(_, nanoseconds)| {
            nanoseconds as f64 / 1e9
        }),
        programs(snapshot, PROGRAM_RUNS, |(runs, _)| runs as f64),
    ]
    .into_iter()
    .filter_map(Series::finish)
    .collect()
}

fn calls(snapshot: &Snapshot) -> Series {
    // Added up, so that no two series have the same labels whatever the inventory holds: Prometheus would refuse the
    // whole scrape.
    let mut sums: BTreeMap<(&Identity, &str, Verdict), u64> = BTreeMap::new();
    for replica in &snapshot.replicas {
        let identity = &replica.identity;
        for (&(method, verdict), &count) in &replica.calls {
            let method = snapshot.methods.get(method).map_or("", String::as_str);
            *sums.entry((identity, method, verdict)).or_default() += count;
        }
        *sums.entry((identity, "", Verdict::Unresolved)).or_default() += replica.unresolved;
    }
    let mut series = Series::new(CALLS);
    for ((identity, method, verdict), count) in sums {
        let labels = [
            &identity.namespace,
            identity.kind.name(),
            &identity.workload,
            &identity.vertex,
            &identity.pod,
            &identity.replica.to_string(),
            method,
            verdict.name(),
        ];
        series.add(&labels, count as f64);
    }
    series
}

/// What pods that are the same replica have in common.
type Seat<'a> = (&'a str, Kind, &'a str, &'a str, Replica);

/// The rejected calls of all pods of a replica. One that may be rejected is there from the start, with 0.
fn rejections(snapshot: &Snapshot) -> Series {
    let mut sums: BTreeMap<(Seat<'_>, &str, Answer), u64> = BTreeMap::new();
    for replica in &snapshot.replicas {
        let of = &replica.identity;
        let seat = (
            &*of.namespace,
            of.kind,
            &*of.workload,
            &*of.vertex,
            of.replica,
        );
        let own = replica
            .calls
            .iter()
            .filter(|((_, verdict), _)| *verdict == Verdict::Rejected)
            .map(|((method, _), count)| (method, count));
        for (&method, &count) in own.chain(&replica.rejected_before) {
            let method = snapshot.methods.get(method).map_or("", String::as_str);
            *sums.entry((seat, method, replica.answer)).or_default() += count;
        }
    }
    let mut series = Series::new(REJECTIONS);
    for ((seat, method, answer), count) in sums {
        let (namespace, kind, workload, vertex, replica) = seat;
        let labels = [
            namespace,
            kind.name(),
            workload,
            vertex,
            &replica.to_string(),
            method,
            answer.name(),
            "policy",
        ];
        series.add(&labels, count as f64);
    }
    series
}

fn failures(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(FAILURES);
    for (reason, count) in &snapshot.failures {
        series.add(&[reason], *count as f64);
    }
    series
}

fn replicas(snapshot: &Snapshot) -> Series {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for replica in snapshot.replicas.iter().filter(|r| r.gone.is_none()) {
        let labels = (&*replica.identity.namespace, replica.mode.name());
        *counts.entry(labels).or_default() += 1;
    }
    let mut series = Series::new(REPLICAS);
    for ((namespace, mode), count) in counts {
        series.add(&[namespace, mode], count as f64);
    }
    series
}

fn connections(snapshot: &Snapshot) -> Series {
    let total = snapshot.connections();
    Series::new(CONNECTIONS)
        .one(&["synced"], total.synced as f64)
        .one(&["unsynced"], total.unsynced as f64)
        .one(&["latched"], total.latched as f64)
        .one(&["gated"], total.gated as f64)
}

fn unparsed(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(UNPARSED);
    for reason in Reason::ALL {
        series.add(&[reason.name()], snapshot.unparsed_count(reason) as f64);
    }
    series
}

fn programs(snapshot: &Snapshot, family: Family, value: fn((u64, u64)) -> f64) -> Series {
    let mut series = Series::new(family);
    for program in &snapshot.programs {
        if let Some(runs) = program.runs {
            series.add(&[program.name], value(runs));
        }
    }
    series
}

/// The series of one family.
struct Series {
    family: Family,
    metrics: Vec<Metric>,
}

impl Series {
    fn new(family: Family) -> Self {
        Self {
            family,
            metrics: Vec::new(),
        }
    }

    fn one(mut self, labels: &[&str], value: f64) -> Self {
        self.add(labels, value);
        self
    }

    fn add(&mut self, values: &[&str], value: f64) {
        debug_assert_eq!(values.len(), self.family.labels.len());
        let pairs = self.family.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        match self.family.kind {
            FamilyKind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            FamilyKind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.metrics.push(metric);
    }

    fn finish(self) -> Option<MetricFamily> {
        if self.metrics.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.family.name.to_owned());
        family.set_help(self.family.help.to_owned());
        family.set_field_type(match self.family.kind {
            FamilyKind::Counter => MetricType::COUNTER,
            FamilyKind::Gauge => MetricType::GAUGE,
        });
        family.set_metric(self.metrics);
        Some(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake;
    use crate::model::Mode;

    fn text(snapshot: &Snapshot) -> String {
        render(snapshot).unwrap()
    }

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .map(|value| value.parse().unwrap())
    }

    const ZERO: &str = r#"pendguard_calls_total{namespace="payments",kind="MonoVertex",workload="orders",vertex="",pod="orders-mv-0-abcde",replica="0",method="/source.v1.Source/PendingFn",verdict="admitted"}"#;

    #[test]
    fn calls_have_the_labels_of_the_contract() {
        let mut snapshot = fake::three();
        snapshot.replicas[2].unresolved = 5;
        let text = text(&snapshot);
        assert_eq!(value(&text, ZERO), Some(9.0));
        for (series, expected) in [
            (
                r#"{namespace="payments",kind="MonoVertex",workload="orders",vertex="",pod="orders-mv-1-abcde",replica="1",method="/source.v1.Source/PendingFn",verdict="would_reject"}"#,
                8.0,
            ),
            (
                r#"{namespace="payments",kind="MonoVertex",workload="orders",vertex="",pod="orders-mv-unknown-abcde",replica="unknown",method="/source.v1.Source/PendingFn",verdict="admitted"}"#,
                7.0,
            ),
            (
                r#"{namespace="payments",kind="MonoVertex",workload="orders",vertex="",pod="orders-mv-unknown-abcde",replica="unknown",method="",verdict="unresolved"}"#,
                5.0,
            ),
            (
                r#"{namespace="payments",kind="MonoVertex",workload="orders",vertex="",pod="orders-mv-0-abcde",replica="0",method="",verdict="unresolved"}"#,
                0.0,
            ),
        ] {
            let name = format!("pendguard_calls_total{series}");
            assert_eq!(value(&text, &name), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_vertex_of_a_pipeline_is_named() {
        let mut snapshot = fake::three();
        let identity = &mut snapshot.replicas[0].identity;
        identity.kind = Kind::Pipeline;
        identity.vertex = "in".to_owned();
        assert!(text(&snapshot).contains(r#"kind="Pipeline",workload="orders",vertex="in""#));
    }

    #[test]
    fn the_living_are_counted_by_namespace_and_mode() {
        let mut snapshot = fake::three();
        snapshot.replicas[1].mode = Mode::Off;
        snapshot.replicas[2].gone = Some(std::time::SystemTime::UNIX_EPOCH);
        let text = text(&snapshot);
        let replicas = |mode: &str| {
            let series = format!("pendguard_replicas{{namespace=\"payments\",mode=\"{mode}\"}}");
            value(&text, &series)
        };
        assert_eq!(replicas("audit"), Some(1.0));
        assert_eq!(replicas("off"), Some(1.0));
        assert_eq!(replicas("enforce"), None);
        // Its calls are still told.
        assert!(text.contains(r#"replica="unknown""#));
    }

    #[test]
    fn connections_of_the_living_by_state() {
        let mut snapshot = fake::three();
        snapshot.replicas[0].unsynced = 4;
        snapshot.replicas[1].latched = 1;
        snapshot.replicas[2].latched = 1;
        snapshot.replicas[2].gone = Some(std::time::SystemTime::UNIX_EPOCH);
        let text = text(&snapshot);
        for (state, count) in [("synced", 2.0), ("unsynced", 4.0), ("latched", 1.0)] {
            let series = format!("pendguard_connections{{state=\"{state}\"}}");
            assert_eq!(value(&text, &series), Some(count));
        }
    }

    #[test]
    fn rejections_are_summed_over_the_pods_of_a_replica() {
        let mut snapshot = fake::three();
        let rejected = (0, Verdict::Rejected);
        snapshot.replicas[1].calls.insert(rejected, 5);
        let mut twin = snapshot.replicas[1].clone();
        twin.identity.pod = "orders-mv-1-other".to_owned();
        twin.calls.insert(rejected, 7);
        twin.rejected_before.insert(0, 30);
        twin.gone = Some(std::time::SystemTime::UNIX_EPOCH);
        snapshot.replicas.push(twin);
        let text = text(&snapshot);
        let series = r#"pendguard_rejections_total{namespace="payments",kind="MonoVertex",workload="orders",vertex="",replica="1",method="/source.v1.Source/PendingFn",answer="unimplemented",reason="policy"}"#;
        assert_eq!(value(&text, series), Some(42.0), "{text}");
        // Replicas that are not enforced have none.
        assert_eq!(text.matches("pendguard_rejections_total{").count(), 1);
        let calls = r#"pod="orders-mv-1-abcde",replica="1",method="/source.v1.Source/PendingFn",verdict="rejected"} 5"#;
        assert!(text.contains(calls), "{text}");
    }

    #[test]
    fn enforcement_and_its_failures() {
        let mut snapshot = fake::three();
        let none = text(&snapshot);
        assert_eq!(
            value(&none, r#"pendguard_enforcer_info{kind="none"}"#),
            Some(1.0)
        );
        let failures = r#"pendguard_enforcement_failures_total{reason="candidate"}"#;
        assert_eq!(value(&none, failures), Some(0.0));
        snapshot.enforcer = Some("gate");
        snapshot.failures[0].1 = 3;
        let gate = text(&snapshot);
        assert_eq!(
            value(&gate, r#"pendguard_enforcer_info{kind="gate"}"#),
            Some(1.0)
        );
        assert_eq!(gate.matches("pendguard_enforcer_info{").count(), 1);
        assert_eq!(value(&gate, failures), Some(3.0));
    }

    #[test]
    fn every_reason_is_there_from_the_start() {
        let mut snapshot = fake::empty();
        snapshot.unparsed = vec![(Reason::Tls, 3)];
        let text = text(&snapshot);
        for reason in Reason::ALL {
            let series = format!("pendguard_unparsed_total{{reason=\"{}\"}}", reason.name());
            let count = if reason == Reason::Tls { 3.0 } else { 0.0 };
            assert_eq!(value(&text, &series), Some(count));
        }
        assert_eq!(value(&text, "pendguard_events_lost_total"), Some(0.0));
    }

    #[test]
    fn the_agent_itself() {
        let text = text(&fake::three());
        assert_eq!(
            value(&text, "pendguard_tap_info{kind=\"tracepoint\"}"),
            Some(1.0)
        );
        assert!(text.contains(&format!(
            "pendguard_build_info{{version=\"{}\",revision=\"{}\",rustc=\"{}\"}} 1\n",
            version::VERSION,
            version::REVISION,
            version::RUSTC
        )));
    }

    #[test]
    fn programs_only_while_the_kernel_accounts() {
        let text = text(&fake::three());
        let runs = |name| {
            value(
                &text,
                &format!("pendguard_program_runs_total{{program=\"{name}\"}}"),
            )
        };
        assert_eq!(runs("exit_write"), Some(10.0));
        assert_eq!(runs("exit_sendto"), None);
        let seconds = "pendguard_program_run_seconds_total{program=\"exit_write\"}";
        assert_eq!(value(&text, seconds), Some(0.0000025));
        assert!(
            !super::render(&fake::empty())
                .unwrap()
                .contains("program_run")
        );
    }

    #[test]
    fn odd_label_values_are_escaped() {
        let mut snapshot = fake::three();
        snapshot.replicas[0].identity.workload = "a\"b\\c\nd".to_owned();
        let text = text(&snapshot);
        assert!(
            text.contains(r#"workload="a\"b\\c\nd",vertex="""#),
            "{text}"
        );
        assert!(
            text.lines()
                .all(|line| line.starts_with("pendguard_") || line.starts_with("# "))
        );
    }

    #[test]
    fn replicas_alike_are_added_up() {
        let mut snapshot = fake::three();
        let twin = snapshot.replicas[0].clone();
        snapshot.replicas.push(twin);
        let text = text(&snapshot);
        assert_eq!(value(&text, ZERO), Some(18.0));
        assert_eq!(text.matches(ZERO).count(), 1);
    }

    #[test]
    fn counters_do_not_fall() {
        let mut snapshot = fake::three();
        let mut last = -1.0;
        for _ in 0..3 {
            let now = value(&text(&snapshot), ZERO).unwrap();
            assert!(now > last);
            last = now;
            for count in snapshot.replicas[0].calls.values_mut() {
                *count += 1;
            }
        }
    }

    #[test]
    fn what_is_exported_is_documented_and_the_other_way_round() {
        let mut snapshot = fake::three();
        snapshot.replicas[0].identity.replica = Replica::Unknown;
        snapshot.replicas[1].calls.insert((0, Verdict::Rejected), 1);
        let exported = families(&snapshot);
        assert_eq!(exported.len(), FAMILIES.len());
        for (family, documented) in exported.iter().zip(FAMILIES) {
            assert_eq!(family.name(), documented.name);
            assert!(documented.help.ends_with('.'), "{}", documented.name);
            assert_eq!(
                documented.kind == FamilyKind::Counter,
                documented.name.ends_with("_total")
            );
            for metric in family.get_metric() {
                let labels: Vec<&str> = metric.get_label().iter().map(|l| l.name()).collect();
                assert_eq!(labels, documented.labels);
            }
        }
    }
}
