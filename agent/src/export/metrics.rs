//! The snapshot as Prometheus metrics.
//!
//! The families are made anew for each scrape: a replica that left takes its series with it, and nothing has to be kept in
//! step.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use agent_common::abi::Reason;
use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::accept::Format;
use super::families::{
    BUILD_INFO, CALLS, CONNECTIONS, DURATION, ENFORCER_INFO, EVENTS_LOST, FAILURES, Family,
    FamilyKind, KUBE_ERRORS, KUBE_SYNCED, MAP_ENTRIES, MAP_MAX_ENTRIES, OTLP_FAILURES, PENDING,
    PROGRAM_RUNS, PROGRAM_SECONDS, REJECTIONS, REPLICA_INFO, REPLICAS, TAP_INFO, UNPARSED,
};
use super::sums::{self, Distribution};
use super::{NONE, openmetrics};
use crate::model::{MapFill, Snapshot};
use crate::version;

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// In Prometheus' format.
    #[error(transparent)]
    Text(#[from] prometheus::Error),
    /// In OpenMetrics.
    #[error(transparent)]
    OpenMetrics(#[from] std::fmt::Error),
}

/// Metrics as text.
pub fn render(families: &[MetricFamily], format: Format) -> Result<String, RenderError> {
    Ok(match format {
        Format::Text => TextEncoder::new().encode_to_string(families)?,
        Format::OpenMetrics => openmetrics::encode(families)?,
    })
}

/// The metrics of a snapshot, and how often metrics were sent over OTLP in vain, where they are sent. A family without a series is left
/// out.
pub fn families(snapshot: &Snapshot, otlp_failures: Option<u64>) -> Vec<MetricFamily> {
    [
        calls(snapshot),
        durations(snapshot),
        pending(snapshot),
        rejections(snapshot),
        failures(snapshot),
        replicas(snapshot),
        versions(snapshot),
        connections(snapshot),
        unparsed(snapshot),
        Series::new(EVENTS_LOST).one(&[], snapshot.events_lost as f64),
        maps(snapshot, MAP_ENTRIES, |map| map.entries),
        maps(snapshot, MAP_MAX_ENTRIES, |map| map.max_entries),
        sent(otlp_failures),
        kube_synced(snapshot),
        kube_errors(snapshot),
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
    let mut series = Series::new(CALLS);
    for ((identity, method, verdict), count) in sums::calls(snapshot) {
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

fn durations(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(DURATION);
    for ((seat, method, code), distribution) in sums::durations(snapshot) {
        let labels = [
            seat.namespace,
            seat.kind.name(),
            seat.workload,
            seat.vertex,
            &seat.replica.to_string(),
            method,
            code.name(),
        ];
        series.distribution(&labels, &distribution);
    }
    series
}

fn pending(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(PENDING);
    for (seat, pending) in sums::pending(snapshot) {
        let labels = [
            seat.namespace,
            seat.kind.name(),
            seat.workload,
            seat.vertex,
            &seat.replica.to_string(),
        ];
        series.add(&labels, pending as f64);
    }
    series
}

fn rejections(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(REJECTIONS);
    for ((seat, method, answer, reason), count) in sums::rejections(snapshot) {
        let labels = [
            seat.namespace,
            seat.kind.name(),
            seat.workload,
            seat.vertex,
            &seat.replica.to_string(),
            method,
            answer.name(),
            reason,
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

fn versions(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(REPLICA_INFO);
    for replica in snapshot.replicas.iter().filter(|r| r.gone.is_none()) {
        let Some(version) = &replica.numaflow_version else {
            continue;
        };
        let identity = &replica.identity;
        let labels = [
            &identity.namespace,
            identity.kind.name(),
            &identity.workload,
            &identity.vertex,
            &identity.pod,
            &identity.replica.to_string(),
            version,
        ];
        series.add(&labels, 1.0);
    }
    series
}

fn kube_synced(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(KUBE_SYNCED);
    for watch in &snapshot.kube {
        series.add(&[watch.resource], f64::from(u8::from(watch.synced)));
    }
    series
}

fn kube_errors(snapshot: &Snapshot) -> Series {
    let mut series = Series::new(KUBE_ERRORS);
    for watch in &snapshot.kube {
        for (reason, count) in &watch.errors {
            series.add(&[watch.resource, reason], *count as f64);
        }
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

fn maps(snapshot: &Snapshot, family: Family, value: fn(&MapFill) -> u64) -> Series {
    let mut series = Series::new(family);
    for map in &snapshot.maps {
        series.add(&[map.name], value(map) as f64);
    }
    series
}

fn sent(failures: Option<u64>) -> Series {
    let series = Series::new(OTLP_FAILURES);
    match failures {
        Some(failures) => series.one(&[], failures as f64),
        None => series,
    }
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
        let mut metric = self.metric(values);
        if self.family.kind == FamilyKind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            debug_assert_eq!(self.family.kind, FamilyKind::Gauge);
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    fn distribution(&mut self, values: &[&str], distribution: &Distribution) {
        debug_assert_eq!(self.family.kind, FamilyKind::Histogram);
        let buckets = distribution.cumulative().map(|(bound, below)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(distribution.count());
        histogram.set_sample_sum(distribution.seconds());
        let mut metric = self.metric(values);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn metric(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(values.len(), self.family.labels.len());
        let pairs = self.family.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        Metric::from_label(pairs.collect())
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
            FamilyKind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(self.metrics);
        Some(family)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use agent_common::abi::answers::Code;

    use super::super::families::FAMILIES;
    use super::*;
    use crate::durations::Durations;
    use crate::engine::fake;
    use agent_common::abi::Manner;

    use crate::model::{Answer, Kind, Mode, Quieted, Replica, Verdict};

    fn text(snapshot: &Snapshot) -> String {
        render(&families(snapshot, None), Format::Text).unwrap()
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
    fn rejections_tell_how_calls_ended_and_why() {
        let rejected = (0, Verdict::Rejected);
        let mut counts = agent_common::abi::Quieted::ZERO;
        counts.calls[Manner::Quiet as usize] = 7;
        counts.calls[Manner::Indexed as usize] = 2;
        let series = |text: &str, answer: &str, reason: &str| {
            let name = format!(
                r#"pendguard_rejections_total{{namespace="payments",kind="MonoVertex",workload="orders",vertex="",replica="1",method="/source.v1.Source/PendingFn",answer="{answer}",reason="{reason}"}}"#
            );
            value(text, &name)
        };
        let mut snapshot = fake::three();
        snapshot.replicas[1].answer = Answer::Quiet;
        snapshot.replicas[1].calls.insert(rejected, 0);
        // From the start.
        let none = text(&snapshot);
        assert_eq!(series(&none, "quiet", "policy"), Some(0.0), "{none}");
        assert_eq!(none.matches("pendguard_rejections_total{").count(), 1);
        snapshot.replicas[1].calls.insert(rejected, 9);
        snapshot.replicas[1].quieted = Quieted::new(&counts);
        let quiet = text(&snapshot);
        assert_eq!(series(&quiet, "quiet", "policy"), Some(7.0), "{quiet}");
        assert_eq!(series(&quiet, "unimplemented", "indexed"), Some(2.0));
        assert_eq!(quiet.matches("pendguard_rejections_total{").count(), 2);
        // Before quiet answers were asked for, or in a pod before this one.
        snapshot.replicas[1].calls.insert(rejected, 12);
        snapshot.replicas[1].quieted_before = Quieted::new(&counts);
        snapshot.replicas[1].rejected_before.insert(0, 9);
        let all = text(&snapshot);
        assert_eq!(series(&all, "quiet", "policy"), Some(14.0), "{all}");
        assert_eq!(series(&all, "unimplemented", "indexed"), Some(4.0));
        assert_eq!(series(&all, "unimplemented", "policy"), Some(3.0));
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
        assert!(!super::tests::text(&fake::empty()).contains("program_run"));
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

    fn took(milliseconds: &[u64]) -> Durations {
        let mut durations = Durations::default();
        for ms in milliseconds {
            durations.record(Duration::from_millis(*ms));
        }
        durations
    }

    /// A snapshot in which everything that can be exported is.
    pub(in crate::export) fn full() -> Snapshot {
        let mut snapshot = fake::three();
        let rejected = (0, Verdict::Rejected);
        snapshot.replicas[0].durations = [((0, Code::Ok), took(&[3]))].into();
        snapshot.replicas[0].pending = Some(5);
        snapshot.replicas[1].calls.insert(rejected, 1);
        snapshot.replicas[1].numaflow_version = Some("v1.4.5".to_owned());
        snapshot.kube = fake::watches();
        snapshot
    }

    #[test]
    fn durations_are_summed_over_the_pods_of_a_replica() {
        let mut snapshot = full();
        let mut twin = snapshot.replicas[0].clone();
        twin.identity.pod = "orders-mv-0-other".to_owned();
        twin.durations_before = [
            ((0, Code::Ok), took(&[5, 40])),
            ((0, Code::Unimplemented), took(&[1])),
        ]
        .into();
        twin.gone = Some(std::time::SystemTime::UNIX_EPOCH);
        snapshot.replicas.push(twin);
        let text = text(&snapshot);
        let labels = r#"namespace="payments",kind="MonoVertex",workload="orders",vertex="",replica="0",method="/source.v1.Source/PendingFn""#;
        let name = "pendguard_call_duration_seconds";
        for (code, le, count) in [
            ("OK", "0.0025", 0.0),
            ("OK", "0.005", 3.0),
            ("OK", "0.025", 3.0),
            ("OK", "0.05", 4.0),
            ("OK", "100", 4.0),
            ("OK", "+Inf", 4.0),
            ("UNIMPLEMENTED", "0.0005", 0.0),
            ("UNIMPLEMENTED", "0.001", 1.0),
        ] {
            let series = format!("{name}_bucket{{{labels},code=\"{code}\",le=\"{le}\"}}");
            assert_eq!(value(&text, &series), Some(count), "{series}");
        }
        let series = |part: &str| value(&text, &format!("{name}_{part}{{{labels},code=\"OK\"}}"));
        assert_eq!(series("count"), Some(4.0));
        assert_eq!(series("sum"), Some(0.051));
        assert!(text.contains("# TYPE pendguard_call_duration_seconds histogram\n"));
    }

    #[test]
    fn what_the_api_server_tells() {
        let mut snapshot = full();
        let text = text(&snapshot);
        for (series, expected) in [
            (
                r#"pendguard_replica_info{namespace="payments",kind="MonoVertex",workload="orders",vertex="",pod="orders-mv-1-abcde",replica="1",numaflow_version="v1.4.5"}"#,
                1.0,
            ),
            (r#"pendguard_kube_synced{resource="pods"}"#, 1.0),
            (r#"pendguard_kube_synced{resource="namespaces"}"#, 0.0),
            (
                r#"pendguard_kube_watch_errors_total{resource="namespaces",reason="forbidden"}"#,
                3.0,
            ),
        ] {
            assert_eq!(value(&text, series), Some(expected), "{series}");
        }
        // Of a pod that has gone nobody asks which version it had.
        snapshot.replicas[1].gone = Some(std::time::SystemTime::UNIX_EPOCH);
        snapshot.kube.clear();
        let text = self::text(&snapshot);
        assert!(!text.contains("replica_info") && !text.contains("kube"));
    }

    #[test]
    fn a_pending_count_is_there_from_the_first_answer_on() {
        let mut snapshot = fake::three();
        assert!(!text(&snapshot).contains("source_pending"));
        let series = r#"pendguard_source_pending{namespace="payments",kind="MonoVertex",workload="orders",vertex="",replica="0"}"#;
        for pending in [0, -1, 1 << 40] {
            snapshot.replicas[0].pending = Some(pending);
            assert_eq!(value(&text(&snapshot), series), Some(pending as f64));
        }
    }

    #[test]
    fn maps_and_their_room() {
        let text = text(&fake::three());
        for (name, count) in [("entries", 3.0), ("max_entries", 8192.0)] {
            let series = format!("pendguard_map_{name}{{map=\"TARGETS\"}}");
            assert_eq!(value(&text, &series), Some(count));
        }
    }

    #[test]
    fn what_is_exported_is_documented_and_the_other_way_round() {
        let without = families(&full(), None);
        assert!(without.iter().all(|family| !family.name().contains("otlp")));
        let exported = families(&full(), Some(3));
        assert_eq!(exported.len(), FAMILIES.len());
        for (family, documented) in exported.iter().zip(FAMILIES) {
            assert_eq!(family.name(), documented.name);
            assert_eq!(
                format!("{:?}", family.get_field_type()).to_lowercase(),
                documented.kind.name()
            );
            assert!(documented.help.ends_with('.'), "{}", documented.name);
            assert_eq!(
                documented.kind == FamilyKind::Counter,
                documented.name.ends_with("_total")
            );
            assert_eq!(
                documented.unit == "seconds",
                documented
                    .name
                    .trim_end_matches("_total")
                    .ends_with("_seconds")
            );
            for metric in family.get_metric() {
                let labels: Vec<&str> = metric.get_label().iter().map(|l| l.name()).collect();
                assert_eq!(labels, documented.labels);
            }
        }
        let names: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
    }

    /// What a scrape of a full node costs, beside one without durations. It says so, and asserts nothing: the machine is
    /// shared. `cargo test --release --lib -- --ignored --nocapture a_scrape_of_250`
    #[test]
    #[ignore = "a measurement"]
    fn a_scrape_of_250_replicas() {
        let mut snapshot = fake::empty();
        snapshot.replicas = (0..250)
            .map(|number| fake::replica(Replica::Number(number), 1000))
            .collect();
        let median = |what: &dyn Fn() -> usize| {
            let mut times: Vec<Duration> = (0..101)
                .map(|_| {
                    let start = std::time::Instant::now();
                    std::hint::black_box(what());
                    start.elapsed()
                })
                .collect();
            times.sort();
            times[50]
        };
        let measure = |snapshot: &Snapshot| {
            let made = families(snapshot, None);
            let times = [
                median(&|| families(snapshot, None).len()),
                median(&|| render(&made, Format::Text).unwrap().len()),
                median(&|| render(&made, Format::OpenMetrics).unwrap().len()),
            ];
            (times, text(snapshot).len())
        };
        let (without, _) = measure(&snapshot);
        for replica in &mut snapshot.replicas {
            replica.pending = Some(1000);
            for code in [Code::Ok, Code::Unimplemented] {
                let durations = took(&[3, 4, 5, 60, 700]);
                replica.durations.insert((0, code), durations);
            }
        }
        let (with, octets) = measure(&snapshot);
        println!(
            "250 replicas, 2 codes, {octets} octets of text; medians of 101, with durations, without, ratio:"
        );
        for (what, (with, without)) in ["families", "text", "OpenMetrics"]
            .into_iter()
            .zip(with.into_iter().zip(without))
        {
            let ratio = with.as_secs_f64() / without.as_secs_f64();
            println!("{what}: {with:?}, {without:?}, {ratio:.1}");
        }
    }
}
