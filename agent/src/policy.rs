//! Which mode applies to a replica, and what its watched calls count as.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use globset::GlobMatcher;

use crate::model::{Identity, Mode, Replica, Verdict};

/// A rule of the configuration file: the mode of the workloads that match it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which namespaces.
    pub namespace: GlobMatcher,
    /// Which MonoVertices and Pipelines.
    pub workload: GlobMatcher,
    /// Their mode.
    pub mode: Mode,
}

impl Rule {
    fn matches(&self, identity: &Identity) -> bool {
        self.namespace.is_match(&identity.namespace) && self.workload.is_match(&identity.workload)
    }
}

/// Everything that the operator has said about replicas.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The mode where no rule says otherwise.
    pub default: Mode,
    /// The rules, in the order of the file.
    pub rules: Vec<Rule>,
    /// Replicas whose calls are admitted. It always contains 0.
    pub allowed: BTreeSet<u32>,
}

impl Policy {
    /// The policy without a word from the operator: audit, and replica 0 is allowed.
    pub fn new(default: Mode) -> Self {
        Self {
            default,
            rules: Vec::new(),
            allowed: BTreeSet::from([0]),
        }
    }

    /// The mode of a replica: the last rule that matches wins.
    pub fn mode(&self, identity: &Identity) -> Mode {
        self.rules
            .iter()
            .rev()
            .find(|rule| rule.matches(identity))
            .map_or(self.default, |rule| rule.mode)
    }

    /// What a watched call of a replica counts as; `None` where the replica isn't watched at all.
    pub fn verdict(&self, identity: &Identity) -> Option<Verdict> {
        let admitted = match identity.replica {
            Replica::Number(number) => self.allowed.contains(&number),
            // Never reject what was not understood.
            Replica::Unknown => true,
        };
        match self.mode(identity) {
            Mode::Off => None,
            _ if admitted => Some(Verdict::Admitted),
            // `settings` refuses enforcement as long as there is none; this says what would really happen.
            Mode::Audit | Mode::Enforce => Some(Verdict::WouldReject),
        }
    }
}

#[cfg(test)]
mod tests {
    use globset::Glob;

    use super::*;
    use crate::model::Kind;

    fn glob(pattern: &str) -> GlobMatcher {
        Glob::new(pattern).unwrap().compile_matcher()
    }

    fn rule(namespace: &str, workload: &str, mode: Mode) -> Rule {
        Rule {
            namespace: glob(namespace),
            workload: glob(workload),
            mode,
        }
    }

    fn identity(namespace: &str, workload: &str, replica: Replica) -> Identity {
        Identity {
            namespace: namespace.to_owned(),
            kind: Kind::MonoVertex,
            workload: workload.to_owned(),
            vertex: String::new(),
            pod: "p".to_owned(),
            replica,
        }
    }

    #[test]
    fn the_last_rule_that_matches_wins() {
        let policy = Policy {
            rules: vec![
                rule("*", "*", Mode::Off),
                rule("payments-*", "*", Mode::Audit),
                rule("payments-*", "legacy", Mode::Off),
            ],
            ..Policy::new(Mode::Audit)
        };
        let mode = |ns, w| policy.mode(&identity(ns, w, Replica::Number(1)));
        assert_eq!(mode("other", "orders"), Mode::Off);
        assert_eq!(mode("payments-eu", "orders"), Mode::Audit);
        assert_eq!(mode("payments-eu", "legacy"), Mode::Off);
        assert_eq!(mode("payments", "orders"), Mode::Off);
    }

    #[test]
    fn the_default_applies_where_no_rule_matches() {
        let policy = Policy {
            rules: vec![rule("a", "b", Mode::Off)],
            ..Policy::new(Mode::Audit)
        };
        assert_eq!(
            policy.mode(&identity("a", "c", Replica::Unknown)),
            Mode::Audit
        );
        assert_eq!(
            policy.mode(&identity("a", "b", Replica::Unknown)),
            Mode::Off
        );
    }

    #[test]
    fn verdicts() {
        let mut policy = Policy::new(Mode::Audit);
        let verdict = |policy: &Policy, replica| policy.verdict(&identity("ns", "w", replica));
        assert_eq!(
            verdict(&policy, Replica::Number(0)),
            Some(Verdict::Admitted)
        );
        assert_eq!(
            verdict(&policy, Replica::Number(1)),
            Some(Verdict::WouldReject)
        );
        assert_eq!(verdict(&policy, Replica::Unknown), Some(Verdict::Admitted));
        policy.allowed.insert(1);
        assert_eq!(
            verdict(&policy, Replica::Number(1)),
            Some(Verdict::Admitted)
        );
        policy.default = Mode::Off;
        assert_eq!(verdict(&policy, Replica::Number(0)), None);
        assert_eq!(verdict(&policy, Replica::Number(7)), None);
    }
}
