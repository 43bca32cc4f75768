//! What enforcement saves the sources, or would: reckoned from counts and measured times, and from nothing else.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::report::{ENFORCE, OK, REJECTED, Replica, WOULD_REJECT};
use crate::durations::Durations;

/// From when on a replica's calls make a rate: those of its first seconds say nothing of an hour.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// Of one workload: of a MonoVertex, or of one vertex of a Pipeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Savings {
    /// Its namespace.
    pub namespace: String,
    /// `MonoVertex` or `Pipeline`.
    pub kind: &'static str,
    /// Name of the MonoVertex or Pipeline.
    pub workload: String,
    /// Name of the vertex; empty for a MonoVertex.
    pub vertex: String,
    /// What enforcement would save: needless calls of replicas that are not enforced. `null` if there was none.
    pub would_save: Option<Saving>,
    /// What enforcement saves: needless calls of replicas that are. `null` if there was none.
    pub saves: Option<Saving>,
}

/// Calls, and what they cost the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Saving {
    /// Calls an hour, on average since the replicas were found, of replicas that live.
    pub calls_per_hour: f64,
    /// The source's time for them, in seconds an hour, as long as the workload's calls take that end OK; `null` where none of theirs was
    /// timed.
    pub source_seconds_per_hour: Option<f64>,
}

impl Saving {
    /// Of two together; the time is known if both are.
    pub fn and(self, other: Self) -> Self {
        let seconds = self
            .source_seconds_per_hour
            .zip(other.source_seconds_per_hour);
        Self {
            calls_per_hour: self.calls_per_hour + other.calls_per_hour,
            source_seconds_per_hour: seconds.map(|(one, two)| one + two),
        }
    }

    /// For people: `1440 calls an hour, 4.68s of the source's time`.
    pub fn text(&self) -> String {
        let calls = self.calls_per_hour;
        // What is rare is no nought.
        let digits = if calls < 9.95 { 1 } else { 0 };
        let mut text = format!("{calls:.digits$} calls an hour");
        match self
            .source_seconds_per_hour
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        {
            Some(time) if time < Duration::from_secs(120) => {
                text += &format!(", {} of the source's time", super::took(time));
            }
            Some(time) => text += &format!(", {} of the source's time", super::duration(time)),
            None => {}
        }
        text
    }
}

/// Of all workloads, together.
pub fn total(savings: &[Savings], which: impl Fn(&Savings) -> Option<Saving>) -> Option<Saving> {
    savings.iter().filter_map(which).reduce(Saving::and)
}

/// Calls of one method and what they took.
#[derive(Default)]
struct Method {
    would_reject: f64,
    rejected: f64,
    ok: Durations,
}

/// By workload, at the time `now`.
pub fn of(replicas: &[Replica], now: SystemTime) -> Vec<Savings> {
    type Key<'a> = (&'a str, &'a str, &'a str, &'static str);
    let mut workloads: BTreeMap<Key<'_>, BTreeMap<&str, Method>> = BTreeMap::new();
    for replica in replicas {
        let key = (
            &*replica.namespace,
            &*replica.workload,
            &*replica.vertex,
            replica.kind,
        );
        let methods = workloads.entry(key).or_default();
        for durations in replica.durations.iter().filter(|of| of.code == OK) {
            let method = methods.entry(&durations.method).or_default();
            method.ok.add(&durations.histogram);
        }
        let Some(hours) = hours(replica, now) else {
            continue;
        };
        for calls in &replica.calls {
            let method = methods.entry(&calls.method).or_default();
            let an_hour = calls.count as f64 / hours;
            // Both verdicts tell how often it asks needlessly; whether that is saved now is a matter of its mode now.
            match calls.verdict {
                WOULD_REJECT | REJECTED if replica.mode == ENFORCE => method.rejected += an_hour,
                WOULD_REJECT | REJECTED => method.would_reject += an_hour,
                _ => {}
            }
        }
    }
    workloads
        .into_iter()
        .map(|((namespace, workload, vertex, kind), methods)| Savings {
            namespace: namespace.to_owned(),
            kind,
            workload: workload.to_owned(),
            vertex: vertex.to_owned(),
            would_save: saving(&methods, |method| method.would_reject),
            saves: saving(&methods, |method| method.rejected),
        })
        .collect()
}

/// How long a replica has been watched that still lives, if that is long enough.
fn hours(replica: &Replica, now: SystemTime) -> Option<f64> {
    let (Some(since), None) = replica.lived else {
        return None;
    };
    let watched = now.duration_since(since).ok()?;
    (watched >= LONG_ENOUGH).then(|| watched.as_secs_f64() / 3600.0)
}

fn saving(
    methods: &BTreeMap<&str, Method>,
    calls_per_hour: impl Fn(&Method) -> f64,
) -> Option<Saving> {
    methods
        .values()
        .map(|method| (calls_per_hour(method), method.ok.mean()))
        .filter(|&(calls, _)| calls > 0.0)
        .map(|(calls, mean)| Saving {
            calls_per_hour: calls,
            source_seconds_per_hour: mean.map(|mean| mean.as_secs_f64() * calls),
        })
        .reduce(Saving::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        let text = |calls_per_hour, source_seconds_per_hour| {
            Saving {
                calls_per_hour,
                source_seconds_per_hour,
            }
            .text()
        };
        assert_eq!(text(1440.4, None), "1440 calls an hour");
        assert_eq!(
            text(1440.0, Some(4.68)),
            "1440 calls an hour, 4.68s of the source's time"
        );
        assert_eq!(
            text(0.5, Some(7_500.0)),
            "0.5 calls an hour, 2 h 5 min of the source's time"
        );
    }

    #[test]
    fn what_is_not_known_of_one_is_not_known_of_both() {
        let known = Saving {
            calls_per_hour: 1.0,
            source_seconds_per_hour: Some(2.0),
        };
        let unknown = Saving {
            source_seconds_per_hour: None,
            ..known
        };
        assert_eq!(known.and(known).source_seconds_per_hour, Some(4.0));
        let both = known.and(unknown);
        assert_eq!(
            (both.calls_per_hour, both.source_seconds_per_hour),
            (2.0, None)
        );
    }
}
