//! What machines read: metrics and health over HTTP.
#![forbid(unsafe_code)]

pub mod accept;
pub mod families;
pub mod http;
pub mod metrics;
pub mod openmetrics;
#[cfg(test)]
mod reference;
pub mod sums;

use agent_common::abi::Reason;

use crate::model::Snapshot;

/// The kind of what isn't there.
pub const NONE: &str = "none";

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
