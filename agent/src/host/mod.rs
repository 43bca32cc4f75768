//! What this node allows, found out without changing it.
//!
//! [`facts`] reads what the kernel tells of itself; [`checks`] says what follows. Whether the programs really load is
//! known only by loading them: that is the tap's own [`Probe`].
#![forbid(unsafe_code)]

pub mod checks;
pub mod facts;
pub mod text;

use serde::Serialize;

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is there, or it isn't needed here.
    Supported,
    /// It could not be found out.
    Inconclusive,
    /// It is missing.
    NotSupported,
}

impl Outcome {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Inconclusive => "inconclusive",
            Self::NotSupported => "not supported",
        }
    }
}

/// Who needs what a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// Audit mode, and so everything else.
    Audit,
    /// Enforcement only, whatever the enforcer.
    Enforcement,
    /// The gate only.
    Gate,
    /// The rewrite enforcer only.
    Rewrite,
    /// Nobody: it explains something.
    Information,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable name.
    pub id: &'static str,
    /// Who needs it.
    pub needed_for: Need,
    /// What was found.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
    /// What follows, and what to do about it; empty where nothing does.
    pub consequence: String,
}

/// What the tap says after it has loaded its programs for a trial.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// Whether the tap would work: enough of the programs load.
    pub outcome: Outcome,
    /// In a sentence.
    pub detail: String,
    /// Program by program.
    pub programs: Vec<ProgramProbe>,
}

/// One program that was loaded for a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramProbe {
    /// Its name in the object.
    pub name: &'static str,
    /// What it would attach to; empty where another program continues in it.
    pub hook: String,
    /// Whether it loads.
    pub outcome: Outcome,
    /// Why not (the end of the verifier's words); empty if it does.
    pub detail: String,
    /// Instructions that the verifier walked, where the kernel tells (5.16).
    pub verified_instructions: Option<u32>,
}

/// Loads the tap's programs for a trial, attaches none, and leaves nothing behind.
pub type Probe = fn() -> ProbeResult;
