//! OpenMetrics 1.0.0, as text.
//!
//! The `prometheus` crate writes the older text format only, and the crates that write this one bring registries of their own.
//! What differs is little: counters are named without `_total` where they are described, bounds are written as floats, help is
//! quoted more, and the end is marked, so that half an answer isn't taken for a whole one.
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

/// The families as text.
pub fn encode(families: &[MetricFamily]) -> Result<String, fmt::Error> {
    let mut out = String::new();
    for family in families {
        describe(&mut out, family)?;
        for metric in family.get_metric() {
            write(&mut out, family, metric)?;
        }
    }
    out.push_str("# EOF\n");
    Ok(out)
}

const TOTAL: &str = "_total";
const SECONDS: &str = "seconds";

fn describe(out: &mut String, family: &MetricFamily) -> fmt::Result {
    let name = base(family);
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY | MetricType::UNTYPED => "unknown",
    };
    writeln!(out, "# TYPE {name} {kind}")?;
    if name.ends_with("_seconds") {
        writeln!(out, "# UNIT {name} {SECONDS}")?;
    }
    write!(out, "# HELP {name} ")?;
    escape(out, family.help());
    out.push('\n');
    Ok(())
}

/// The name of a family: a counter's sample has `_total` behind it.
fn base(family: &MetricFamily) -> &str {
    let name = family.name();
    match family.get_field_type() {
        MetricType::COUNTER => name.strip_suffix(TOTAL).unwrap_or(name),
        _ => name,
    }
}

fn write(out: &mut String, family: &MetricFamily, metric: &Metric) -> fmt::Result {
    let name = base(family);
    // Once for all samples of a histogram: they are most of a scrape.
    let labels = labels(metric.get_label());
    let mut sample = |suffix: &str, bound: Option<f64>, value: &dyn fmt::Display| {
        out.push_str(name);
        out.push_str(suffix);
        match bound {
            Some(bound) if labels.is_empty() => write!(out, "{{le=\"{}\"}}", Bound(bound))?,
            Some(bound) => write!(out, "{{{labels},le=\"{}\"}}", Bound(bound))?,
            None if labels.is_empty() => {}
            None => write!(out, "{{{labels}}}")?,
        }
        writeln!(out, " {value}")
    };
    match family.get_field_type() {
        MetricType::COUNTER => sample(TOTAL, None, &Number(metric.get_counter().get_value())),
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            let count = histogram.get_sample_count();
            for bucket in histogram.get_bucket() {
                let bound = Some(bucket.upper_bound());
                sample("_bucket", bound, &bucket.cumulative_count())?;
            }
            sample("_bucket", Some(f64::INFINITY), &count)?;
            sample("_sum", None, &Number(histogram.get_sample_sum()))?;
            sample("_count", None, &count)
        }
        // There are no others here.
        _ => sample("", None, &Number(metric.get_gauge().get_value())),
    }
}

fn labels(labels: &[LabelPair]) -> String {
    let mut out = String::new();
    for label in labels {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(label.name());
        out.push_str("=\"");
        escape(&mut out, label.value());
        out.push('"');
    }
    out
}

/// Help and label values are escaped alike, unlike in the older format.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// A value: whole numbers without a point, infinities and NaN as they must be.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            value if value == f64::INFINITY => f.write_str("+Inf"),
            value if value == f64::NEG_INFINITY => f.write_str("-Inf"),
            value => value.fmt(f),
        }
    }
}

/// A bound is part of a series' name, so all that write one must write it alike: as Go and Python do, and always as a float ("Canonical
/// Numbers" in the specification).
struct Bound(f64);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bound) = *self;
        if !bound.is_finite() {
            return Number(bound).fmt(f);
        }
        if bound != 0.0 && !(1e-4..1e16).contains(&bound.abs()) {
            // Two digits at least: 1e-05.
            let text = format!("{bound:e}");
            let (mantissa, exponent) = text.split_once('e').ok_or(fmt::Error)?;
            let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
            return write!(f, "{mantissa}e{exponent:+03}");
        }
        write!(f, "{bound:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics;
    use super::*;

    /// As it was read by Prometheus' own parser for Python (`prometheus_client.openmetrics.parser`) when it was written down.
    #[test]
    fn it_is_as_it_was() {
        let snapshot = metrics::tests::full();
        let text = encode(&metrics::families(&snapshot, Some(0))).unwrap();
        let text = stable(&text);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/export/openmetrics.golden");
        if std::env::var_os("PENDGUARD_UPDATE_DOCS").is_some_and(|value| value == "1") {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(path).unwrap());
    }

    /// Without what changes with each build.
    fn stable(text: &str) -> String {
        let lines = text.lines().map(|line| {
            if line.starts_with("pendguard_build_info{") {
                "pendguard_build_info{version=\"V\",revision=\"R\",rustc=\"C\"} 1\n".to_owned()
            } else {
                format!("{line}\n")
            }
        });
        lines.collect()
    }

    #[test]
    fn bounds_are_written_as_everyone_writes_them() {
        for (bound, text) in [
            (1e-5, "1e-05"),
            (2.5e-5, "2.5e-05"),
            (1e-4, "0.0001"),
            (0.25, "0.25"),
            (1.0, "1.0"),
            (2.5, "2.5"),
            (100.0, "100.0"),
            (0.0, "0.0"),
            (1e17, "1e+17"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(Bound(bound).to_string(), text);
        }
    }

    #[test]
    fn odd_label_values_are_escaped() {
        let mut snapshot = metrics::tests::full();
        snapshot.replicas[0].identity.workload = "a\"b\\c\nd".to_owned();
        let text = encode(&metrics::families(&snapshot, Some(0))).unwrap();
        assert!(
            text.contains(r#"workload="a\"b\\c\nd",vertex="""#),
            "{text}"
        );
        assert!(text.ends_with("\n# EOF\n"));
    }
}
