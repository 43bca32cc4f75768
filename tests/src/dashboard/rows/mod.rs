//! The panels.

mod health;
mod latency;
mod overview;
mod pending;
mod replicas;
mod savings;

use super::panel::{Kind, Panel, Query, Row, Unit};

/// All rows, in their order: first whether there is a problem, then where, then what helps, and last whether the agents are well.
pub const ROWS: &[Row] = &[
    overview::ROW,
    replicas::ROW,
    latency::ROW,
    savings::ROW,
    pending::ROW,
    health::ROW,
];
