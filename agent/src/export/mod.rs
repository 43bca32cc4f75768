//! What machines read: metrics and health over HTTP, and metrics over OTLP.
#![forbid(unsafe_code)]

pub mod accept;
pub mod families;
pub mod http;
pub mod metrics;
pub mod openmetrics;
pub mod otlp;
#[cfg(test)]
mod reference;
pub mod sums;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_common::abi::Reason;
use prometheus::proto::MetricFamily;

use crate::engine::{Handle, Unresponsive};
use crate::model::Snapshot;

/// The kind of what isn't there.
pub const NONE: &str = "none";

/// Where exporters have their metrics from.
#[derive(Clone)]
pub struct Source {
    /// Who knows the node.
    pub engine: Handle,
    /// How often metrics were sent in vain, where they are sent.
    pub otlp_failures: Option<Arc<AtomicU64>>,
}

impl Source {
    /// One that sends nothing.
    pub fn new(engine: Handle) -> Self {
        Self {
            engine,
            otlp_failures: None,
        }
    }

    /// All metrics as they are now.
    pub async fn families(&self) -> Result<Vec<MetricFamily>, Unresponsive> {
        let snapshot = self.engine.snapshot().await?;
        let failures = self.otlp_failures.as_ref();
        let failures = failures.map(|failures| failures.load(Ordering::Relaxed));
        Ok(metrics::families(&snapshot, failures))
    }
}

/// Connections by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// In step with their stream.
    pub synced: u64,
    /// Out of step.
    pub unsynced: u64,
    /// Rejecting until they end; each is also one of the others.
    pub latched: u64,
    /// That the gate stands before.
    pub gated: u64,
}

/// Sums that every exporter shows, so that they show the same.
impl Snapshot {
    /// The connections of living replicas.
    pub fn connections(&self) -> Connections {
        let living = self.replicas.iter().filter(|r| r.gone.is_none());
        living.fold(Connections::default(), |sum, replica| Connections {
            synced: sum.synced + replica.synced,
            unsynced: sum.unsynced + replica.unsynced,
            latched: sum.latched + replica.latched,
            gated: sum.gated + replica.gated,
        })
    }

    /// How often something could not be followed for this reason.
    pub fn unparsed_count(&self, reason: Reason) -> u64 {
        self.unparsed
            .iter()
            .filter(|(other, _)| *other == reason)
            .map(|(_, count)| count)
            .sum()
    }
}
