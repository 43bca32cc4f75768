//! A request from the metrics of a scrape.
//!
//! Names follow OpenTelemetry's conventions where there are some: the durations of calls are `rpc.client.call.duration` in seconds, with
//! the attributes of the conventions for gRPC. The others are named after Prometheus' metrics, such that a translation back gives those
//! names again (`pendguard.calls`, a monotonic sum, becomes `pendguard_calls_total`).
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use agent_common::abi::answers::Code;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus::proto::{self, LabelPair, MetricFamily};

use super::super::families::{DURATION, FAMILIES, Family, FamilyKind};
use crate::version;

/// The agent's name, as a resource and as a scope.
const NAME: &str = "pendguard";

/// What all requests of an agent have in common.
pub struct Sender {
    resource: Resource,
    start: u64,
}

impl Sender {
    /// Of this node, counting from now on.
    pub fn new() -> Self {
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy();
        Self {
            resource: Resource {
                attributes: vec![
                    text("service.name", NAME),
                    text("service.version", version::VERSION),
                    // One agent a node: what distinguishes nodes does so for agents.
                    text("service.instance.id", &*host),
                    text("host.name", &*host),
                ],
                ..Resource::default()
            },
            start: nanoseconds(SystemTime::now()),
        }
    }

    /// These metrics, as they are now.
    pub fn request(&self, families: &[MetricFamily]) -> ExportMetricsServiceRequest {
        let times = Times {
            start: self.start,
            now: nanoseconds(SystemTime::now()).max(self.start),
        };
        let metrics = families.iter().filter_map(|family| metric(family, times));
        let scope = ScopeMetrics {
            scope: Some(InstrumentationScope {
                name: NAME.to_owned(),
                version: version::VERSION.to_owned(),
                ..InstrumentationScope::default()
            }),
            metrics: metrics.collect(),
            ..ScopeMetrics::default()
        };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![scope],
                ..ResourceMetrics::default()
            }],
        }
    }
}

/// Of the first count and of this one, in ns since the epoch.
#[derive(Clone, Copy)]
struct Times {
    start: u64,
    now: u64,
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn metric(family: &MetricFamily, times: Times) -> Option<Metric> {
    let documented = FAMILIES.iter().find(|f| f.name == family.name())?;
    let metrics = family.get_metric().iter();
    let numbers = |value: fn(&proto::Metric) -> f64| {
        let points = metrics.clone().map(|metric| NumberDataPoint {
            attributes: attributes(documented, metric.get_label()),
            start_time_unix_nano: match documented.kind {
                FamilyKind::Gauge => 0,
                FamilyKind::Counter | FamilyKind::Histogram => times.start,
            },
            time_unix_nano: times.now,
            value: Some(number(documented, value(metric))),
            ..NumberDataPoint::default()
        });
        points.collect()
    };
    let temporality = AggregationTemporality::Cumulative.into();
    let data = match documented.kind {
        FamilyKind::Counter => Data::Sum(Sum {
            data_points: numbers(|metric| metric.get_counter().get_value()),
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        FamilyKind::Gauge => Data::Gauge(Gauge {
            data_points: numbers(|metric| metric.get_gauge().get_value()),
        }),
        FamilyKind::Histogram => Data::Histogram(Histogram {
            data_points: metrics
                .map(|metric| distribution(documented, metric, times))
                .collect(),
            aggregation_temporality: temporality,
        }),
    };
    Some(Metric {
        name: name(documented),
        description: documented.help.to_owned(),
        unit: unit(documented.unit),
        data: Some(data),
        ..Metric::default()
    })
}

/// Everything but seconds is counted, and small enough (2^53) to be exact.
fn number(family: &Family, value: f64) -> number_data_point::Value {
    if family.unit == "seconds" {
        number_data_point::Value::AsDouble(value)
    } else {
        number_data_point::Value::AsInt(value as i64)
    }
}

fn distribution(family: &Family, metric: &proto::Metric, times: Times) -> HistogramDataPoint {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count();
    let buckets = histogram.get_bucket();
    // Prometheus counts what is at most as long, OTLP what is in each bucket; both include the upper bound.
    let cumulative = buckets.iter().map(proto::Bucket::cumulative_count);
    let mut below = 0;
    let each = cumulative.chain([count]).map(|next| {
        let here = next.saturating_sub(below);
        below = next;
        here
    });
    HistogramDataPoint {
        attributes: attributes(family, metric.get_label()),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        count,
        sum: Some(histogram.get_sample_sum()),
        bucket_counts: each.collect(),
        explicit_bounds: buckets.iter().map(proto::Bucket::upper_bound).collect(),
        ..HistogramDataPoint::default()
    }
}

/// The OpenTelemetry name of a metric.
pub fn name(family: &Family) -> String {
    if family.name == DURATION.name {
        return "rpc.client.call.duration".to_owned();
    }
    // Type and unit are told beside the name.
    let name = family.name;
    let name = name.strip_suffix("_total").unwrap_or(name);
    let name = name.strip_suffix("_seconds").unwrap_or(name);
    match name.strip_prefix("pendguard_") {
        Some(rest) => format!("pendguard.{rest}"),
        None => name.to_owned(),
    }
}

/// In UCUM, in which what is counted is an annotation, in the singular.
pub fn unit(unit: &str) -> String {
    if unit == "seconds" {
        "s".to_owned()
    } else if let Some(stem) = unit.strip_suffix("ies") {
        format!("{{{stem}y}}")
    } else if unit.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", unit.trim_end_matches('s'))
    }
}

fn attributes(family: &Family, labels: &[LabelPair]) -> Vec<KeyValue> {
    let of_replica = family.labels.contains(&"workload");
    let mut attributes = Vec::with_capacity(labels.len() + 2);
    if family.labels.contains(&"method") {
        attributes.push(text("rpc.system.name", "grpc"));
    }
    for label in labels {
        let (name, value) = (label.name(), label.value());
        let key = match name {
            // To Prometheus, an empty label is one that isn't there.
            _ if value.is_empty() => continue,
            "namespace" => "k8s.namespace.name",
            "pod" => "k8s.pod.name",
            "kind" if of_replica => "numaflow.workload.kind",
            "workload" => "numaflow.workload.name",
            "vertex" => "numaflow.vertex.name",
            "replica" => "numaflow.replica",
            "method" => {
                // Service and method, fully qualified, without the path's slash.
                attributes.push(text("rpc.method", value.trim_start_matches('/')));
                continue;
            }
            "code" => {
                end(&mut attributes, value);
                continue;
            }
            _ => {
                attributes.push(text(&format!("pendguard.{name}"), value));
                continue;
            }
        };
        attributes.push(text(key, value));
    }
    attributes
}

/// How a call ended. Only what gRPC calls a status is one; every status but OK is an error to a client.
fn end(attributes: &mut Vec<KeyValue>, code: &str) {
    let known = Code::ALL.into_iter().find(|known| known.name() == code);
    match known {
        Some(Code::Ok) => attributes.push(text("rpc.response.status_code", code)),
        Some(Code::Quiet) => {
            attributes.push(text("rpc.response.status_code", Code::Ok.name()));
            attributes.push(text("pendguard.code", code));
        }
        // It ended with a status, maybe OK; nobody knows which.
        Some(Code::Unresolved) | None => attributes.push(text("pendguard.code", code)),
        Some(Code::Reset | Code::ConnectionLost) => attributes.push(text("error.type", code)),
        Some(_) => {
            attributes.push(text("rpc.response.status_code", code));
            attributes.push(text("error.type", code));
        }
    }
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.into())),
        }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::super::super::metrics;
    use super::*;

    fn attributes_of(attributes: &[KeyValue]) -> BTreeMap<&str, &str> {
        let pair = |pair: &KeyValue| match &pair.value.as_ref()?.value {
            Some(Value::StringValue(_)) => Some(()),
            _ => None,
        };
        assert!(attributes.iter().all(|a| pair(a).is_some()));
        let map: BTreeMap<_, _> = attributes
            .iter()
            .filter_map(|pair| match &pair.value.as_ref()?.value {
                Some(Value::StringValue(value)) => Some((&*pair.key, &**value)),
                _ => None,
            })
            .collect();
        assert_eq!(map.len(), attributes.len(), "each key once");
        map
    }

    fn full() -> (Vec<MetricFamily>, BTreeMap<String, Metric>) {
        let families = metrics::families(&metrics::tests::full(), Some(2));
        let request = Sender::new().request(&families);
        let [of_resource] = &request.resource_metrics[..] else {
            panic!("one resource")
        };
        let scope = &of_resource.scope_metrics[0];
        let metrics = scope.metrics.iter().map(|m| (m.name.clone(), m.clone()));
        (families, metrics.collect())
    }

    #[test]
    fn everything_that_is_scraped_is_sent() {
        let (families, sent) = full();
        assert_eq!(families.len(), FAMILIES.len());
        assert_eq!(sent.len(), FAMILIES.len());
        for (family, documented) in families.iter().zip(FAMILIES) {
            let metric = &sent[&name(documented)];
            let points = match (documented.kind, metric.data.as_ref().unwrap()) {
                (FamilyKind::Counter, Data::Sum(sum)) => {
                    assert!(sum.is_monotonic);
                    assert_eq!(sum.aggregation_temporality, 2);
                    for point in &sum.data_points {
                        assert!(point.start_time_unix_nano > 0);
                        assert!(point.time_unix_nano >= point.start_time_unix_nano);
                    }
                    sum.data_points.len()
                }
                (FamilyKind::Gauge, Data::Gauge(gauge)) => gauge.data_points.len(),
                (FamilyKind::Histogram, Data::Histogram(histogram)) => {
                    assert_eq!(histogram.aggregation_temporality, 2);
                    histogram.data_points.len()
                }
                (kind, data) => panic!("{kind:?}: {data:?}"),
            };
            assert_eq!(points, family.get_metric().len(), "{}", documented.name);
        }
    }

    #[test]
    fn names_and_units() {
        for (prometheus, name_of, unit_of) in [
            ("pendguard_calls_total", "pendguard.calls", "{call}"),
            (
                "pendguard_call_duration_seconds",
                "rpc.client.call.duration",
                "s",
            ),
            (
                "pendguard_source_pending",
                "pendguard.source_pending",
                "{message}",
            ),
            (
                "pendguard_map_max_entries",
                "pendguard.map_max_entries",
                "{entry}",
            ),
            (
                "pendguard_program_run_seconds_total",
                "pendguard.program_run",
                "s",
            ),
            ("pendguard_build_info", "pendguard.build_info", ""),
        ] {
            let family = FAMILIES.iter().find(|f| f.name == prometheus).unwrap();
            assert_eq!(name(family), name_of);
            assert_eq!(unit(family.unit), unit_of);
        }
    }

    #[test]
    fn calls_have_the_attributes_of_the_conventions() {
        let (_, sent) = full();
        let Some(Data::Sum(calls)) = &sent["pendguard.calls"].data else {
            panic!("a sum")
        };
        // Before it, those whose method isn't known.
        let first = &calls.data_points[1];
        assert_eq!(first.value, Some(number_data_point::Value::AsInt(9)));
        let expected = [
            ("k8s.namespace.name", "payments"),
            ("k8s.pod.name", "orders-mv-0-abcde"),
            ("numaflow.replica", "0"),
            ("numaflow.workload.kind", "MonoVertex"),
            ("numaflow.workload.name", "orders"),
            ("pendguard.verdict", "admitted"),
            ("rpc.method", "source.v1.Source/PendingFn"),
            ("rpc.system.name", "grpc"),
        ];
        assert_eq!(attributes_of(&first.attributes), expected.into());
        let Some(Data::Gauge(tap)) = &sent["pendguard.tap_info"].data else {
            panic!("a gauge")
        };
        let tap = attributes_of(&tap.data_points[0].attributes);
        assert_eq!(tap, [("pendguard.kind", "tracepoint")].into());
    }

    #[test]
    fn durations_by_bucket() {
        let (_, sent) = full();
        let Some(Data::Histogram(durations)) = &sent["rpc.client.call.duration"].data else {
            panic!("a histogram")
        };
        let [point] = &durations.data_points[..] else {
            panic!("one")
        };
        assert_eq!((point.count, point.sum), (1, Some(0.003)));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
        let bucket = point.bucket_counts.iter().position(|n| *n == 1).unwrap();
        assert_eq!(point.explicit_bounds[bucket], 0.005);
        let attributes = attributes_of(&point.attributes);
        assert_eq!(attributes["rpc.response.status_code"], "OK");
        assert!(!attributes.contains_key("error.type"));
        assert!(!attributes.contains_key("k8s.pod.name"));
    }

    #[test]
    fn ends_that_are_no_status_are_none() {
        for (code, expected) in [
            (Code::Ok, &[("rpc.response.status_code", "OK")][..]),
            (
                Code::Unimplemented,
                &[
                    ("error.type", "UNIMPLEMENTED"),
                    ("rpc.response.status_code", "UNIMPLEMENTED"),
                ],
            ),
            (Code::Reset, &[("error.type", "RESET")]),
            (Code::ConnectionLost, &[("error.type", "CONNECTION_LOST")]),
            (Code::Unresolved, &[("pendguard.code", "UNRESOLVED")]),
            (
                Code::Quiet,
                &[
                    ("pendguard.code", "QUIET"),
                    ("rpc.response.status_code", "OK"),
                ],
            ),
        ] {
            let mut attributes = Vec::new();
            end(&mut attributes, code.name());
            let expected: BTreeMap<_, _> = expected.iter().copied().collect();
            assert_eq!(attributes_of(&attributes), expected);
        }
    }
}
