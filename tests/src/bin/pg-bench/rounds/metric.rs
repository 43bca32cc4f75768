//! What is measured of a mode.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where CPU time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Client,
    Source,
    Proxy,
    Agent,
    /// Threads of the kernel.
    Kernel,
    /// All of these.
    Whole,
}

impl Part {
    /// All but the sum.
    pub const EACH: [Self; 5] = [
        Self::Client,
        Self::Source,
        Self::Proxy,
        Self::Agent,
        Self::Kernel,
    ];
}

/// One number. Durations of calls are in microseconds, rates are a second's, CPU time is in nanoseconds a message read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// A call of PendingFn that is admitted, one after another: the median.
    PendingP50,
    /// The 99th percentile.
    PendingP99,
    /// How many there are.
    PendingRate,
    /// The same with 16 at a time.
    PendingRateOf16,
    /// Calls that are rejected, one after another; in bare, by the source itself.
    RejectedRate,
    /// The same calls as of [`Metric::PendingRate`] with reading at saturation beside them, and the reading meanwhile.
    BusyPendingRate,
    BusyPendingRead,
    /// The same of calls that are rejected.
    BusyRejectedRate,
    BusyRejectedRead,
    /// Messages read at saturation.
    ReadRate,
    ReadCpu(Part),
    /// The same where no more than 50,000 a second are asked for.
    PacedRate,
    PacedCpu(Part),
}

/// As it is written in JSON.
const NAMES: [(&str, Metric); 11] = [
    ("pending_p50_us", Metric::PendingP50),
    ("pending_p99_us", Metric::PendingP99),
    ("pending_per_s", Metric::PendingRate),
    ("pending_16_per_s", Metric::PendingRateOf16),
    ("rejected_per_s", Metric::RejectedRate),
    ("busy_pending_per_s", Metric::BusyPendingRate),
    ("busy_pending_read_per_s", Metric::BusyPendingRead),
    ("busy_rejected_per_s", Metric::BusyRejectedRate),
    ("busy_rejected_read_per_s", Metric::BusyRejectedRead),
    ("read_per_s", Metric::ReadRate),
    ("paced_per_s", Metric::PacedRate),
];
const PARTS: [(&str, Part); 6] = [
    ("client", Part::Client),
    ("source", Part::Source),
    ("proxy", Part::Proxy),
    ("agent", Part::Agent),
    ("kernel", Part::Kernel),
    ("whole", Part::Whole),
];

impl Metric {
    fn name(self) -> String {
        let of = |what: &str, part: Part| {
            let name = PARTS.iter().find(|(_, other)| *other == part);
            format!("{what}_cpu_{}_ns", name.map_or("", |(name, _)| name))
        };
        match self {
            Self::ReadCpu(part) => of("read", part),
            Self::PacedCpu(part) => of("paced", part),
            _ => {
                let name = NAMES.iter().find(|(_, other)| *other == self);
                name.map_or_else(String::new, |(name, _)| (*name).to_owned())
            }
        }
    }

    fn named(name: &str) -> Option<Self> {
        let all = NAMES.iter().map(|(_, metric)| *metric);
        let parts = PARTS
            .iter()
            .flat_map(|(_, part)| [Self::ReadCpu(*part), Self::PacedCpu(*part)]);
        all.chain(parts).find(|metric| metric.name() == name)
    }

    /// What of bare it is compared with: calls that are rejected with those that are admitted.
    pub fn reference(self) -> Self {
        match self {
            Self::RejectedRate => Self::PendingRate,
            Self::BusyRejectedRate => Self::BusyPendingRate,
            Self::BusyRejectedRead => Self::BusyPendingRead,
            other => other,
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("{name} is not measured")))
    }
}

/// What was measured at one time.
pub type Measures = BTreeMap<Metric, f64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own() {
        let mut measures = Measures::new();
        for (i, (_, metric)) in NAMES.iter().enumerate() {
            measures.insert(*metric, i as f64);
        }
        for (_, part) in PARTS {
            measures.insert(Metric::ReadCpu(part), 1.0);
            measures.insert(Metric::PacedCpu(part), 2.0);
        }
        let text = serde_json::to_string(&measures).unwrap();
        assert_eq!(serde_json::from_str::<Measures>(&text).unwrap(), measures);
        assert!(serde_json::from_str::<Measures>(r#"{"speed": 1.0}"#).is_err());
    }

    #[test]
    fn rejected_calls_are_compared_with_admitted_ones() {
        assert_eq!(Metric::RejectedRate.reference(), Metric::PendingRate);
        assert_eq!(Metric::ReadRate.reference(), Metric::ReadRate);
    }
}
