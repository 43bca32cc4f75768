//! What stands between the client and its source, or watches them.

use serde::{Deserialize, Serialize};

use crate::proxies::Kind;

/// A mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing, as before and after: how far the measure itself can be relied on.
    Control,
    /// An agent that audits and doesn't follow answers.
    NoAnswers,
    /// An agent that audits.
    Audit,
    /// The source's end is in a socket map with a program that does nothing.
    Empty,
    /// An agent that enforces: the source's end is behind the gate.
    Gate,
    /// An agent that enforces in the sender's buffer: where the kernel lets programs write to processes.
    Rewrite,
    /// The same, and rejected calls are answered quietly: an octet of their answers is edited, too.
    Quiet,
    /// A proxy.
    Proxy(Kind),
}

impl Mode {
    /// Without a proxy.
    pub const OURS: [Self; 5] = [
        Self::Control,
        Self::NoAnswers,
        Self::Audit,
        Self::Empty,
        Self::Gate,
    ];

    /// Where instructions are counted.
    pub const COUNTED: [Self; 5] = [
        Self::Control,
        Self::NoAnswers,
        Self::Audit,
        Self::Rewrite,
        Self::Quiet,
    ];

    /// All that are timed.
    pub fn all() -> Vec<Self> {
        let proxies = Kind::ALL.map(Self::Proxy);
        Self::OURS.into_iter().chain(proxies).collect()
    }

    /// As the tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "bare, once more",
            Self::NoAnswers => "audit, --no-answers",
            Self::Audit => "audit",
            Self::Empty => "an empty sk_skb program",
            Self::Gate => "gate (enforce)",
            Self::Rewrite => "rewrite (enforce)",
            Self::Quiet => "rewrite (enforce), quiet",
            Self::Proxy(kind) => kind.name(),
        }
    }

    /// Whether calls of PendingFn reach the source.
    pub const fn admits(self) -> bool {
        !matches!(self, Self::Gate | Self::Rewrite | Self::Quiet)
    }

    /// Whether something that is not the source rejects calls.
    pub const fn rejects(self) -> bool {
        match self {
            Self::Gate | Self::Rewrite | Self::Quiet => true,
            Self::Proxy(kind) => kind.rejects(),
            _ => false,
        }
    }
}
