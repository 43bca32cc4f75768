//! Which mode applies to a replica, and what its watched calls count as.
//!
//! Four things have a say, each winning over those before it: the node's default, the rules of the configuration file, the annotation
//! of a namespace or a pod (the pod's wins), and what was set at run time. Within rules and settings, what comes later wins.
//! Whoever isn't known well enough is audited at most ([`Say::held`]), whatever they say.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;

use agent_common::abi::verdict;
use globset::{Glob, GlobMatcher};

use crate::model::{Answer, Identity, Mode, ModeFrom, ModeOverride, Replica, Verdict};

/// The service of a Numaflow source.
const SOURCE: &str = "/source.v1.Source/";
/// The only method of it that may be rejected: without the others a source doesn't read, or counts as broken.
const PENDING: &str = "/source.v1.Source/PendingFn";
/// Settings of run time that are kept at most.
pub const MAX_OVERRIDES: usize = 256;
/// Octets of a namespace's or a pod's name at most; Kubernetes has none longer.
const MAX_NAME: usize = 253;

/// The first of these methods that must not be enforced, because sources don't work without it.
pub fn unenforceable<S: AsRef<str>>(methods: &[S]) -> Option<usize> {
    methods.iter().position(|method| {
        let method = method.as_ref();
        method.starts_with(SOURCE) && method != PENDING
    })
}

/// A rule of the configuration file: the mode of the workloads that match it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which namespaces.
    pub namespace: GlobMatcher,
    /// Which MonoVertices and Pipelines.
    pub workload: GlobMatcher,
    /// Their mode.
    pub mode: Mode,
    /// How their rejected calls end, if the rule says so.
    pub answer: Option<Answer>,
}

impl Rule {
    fn matches(&self, identity: &Identity) -> bool {
        self.namespace.is_match(&identity.namespace) && self.workload.is_match(&identity.workload)
    }
}

/// Which replicas a change of mode at run time is for: those that match all that it names.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    namespace: Option<GlobMatcher>,
    pod: Option<String>,
}

/// Why something selects no replicas.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It is empty.
    #[error("the {0} is empty; leave it out to mean all")]
    Empty(&'static str),
    /// It is longer than any name.
    #[error("the {0} has {1} octets, and Kubernetes' names at most {MAX_NAME}")]
    Long(&'static str, usize),
    /// It is no glob.
    #[error("the {0} is no glob: {1}")]
    Glob(&'static str, #[source] globset::Error),
}

impl Selector {
    /// The replicas in the namespaces that match the glob `namespace` and in the pod of exactly that name, each only if
    /// given.
    pub fn new(namespace: Option<&str>, pod: Option<&str>) -> Result<Self, SelectorError> {
        Ok(Self {
            namespace: namespace.map(|text| glob("namespace", text)).transpose()?,
            pod: pod.map(pod_name).transpose()?,
        })
    }

    /// Whether it means every replica.
    pub fn is_everything(&self) -> bool {
        self.namespace.is_none() && self.pod.is_none()
    }

    /// Whether it means this one.
    pub fn matches(&self, identity: &Identity) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|glob| glob.is_match(&identity.namespace))
            && self.pod.as_ref().is_none_or(|pod| *pod == identity.pod)
    }

    /// The namespaces, as they were written.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_ref().map(|glob| glob.glob().glob())
    }

    /// The pod's name.
    pub fn pod(&self) -> Option<&str> {
        self.pod.as_deref()
    }
}

/// Equal is what is written alike.
impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        (self.namespace(), self.pod()) == (other.namespace(), other.pod())
    }
}

impl Eq for Selector {}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.namespace(), self.pod()) {
            (None, None) => f.write_str("every replica"),
            (Some(namespace), None) => write!(f, "namespace {namespace}"),
            (None, Some(pod)) => write!(f, "pod {pod}"),
            (Some(namespace), Some(pod)) => write!(f, "namespace {namespace}, pod {pod}"),
        }
    }
}

/// A glob that names are matched with; `of` says what they are names of.
pub fn glob(of: &'static str, text: &str) -> Result<GlobMatcher, SelectorError> {
    name(of, text)?;
    let glob = Glob::new(text).map_err(|error| SelectorError::Glob(of, error))?;
    Ok(glob.compile_matcher())
}

fn pod_name(text: &str) -> Result<String, SelectorError> {
    name("pod", text)?;
    Ok(text.to_owned())
}

fn name(of: &'static str, text: &str) -> Result<(), SelectorError> {
    match text.len() {
        0 => Err(SelectorError::Empty(of)),
        1..=MAX_NAME => Ok(()),
        length => Err(SelectorError::Long(of, length)),
    }
}

/// A mode that is set at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeChange {
    /// The mode.
    pub mode: Mode,
    /// How rejected calls end; `None`: as the configuration says.
    pub answer: Option<Answer>,
    /// For whom.
    pub selector: Selector,
}

/// There are too many settings of run time already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{MAX_OVERRIDES} modes are set at run time already; set one for every replica, which replaces them all, or write rules \
     into the configuration file"
)]
pub struct TooManyOverrides;

/// What discovery says of a replica, besides who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Say {
    /// The mode that its pod or its namespace is annotated with.
    pub annotation: Option<Mode>,
    /// Whether it must not be enforced: who it is isn't certain, or what it wants isn't understood.
    pub held: bool,
}

/// What the policy says of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The mode that applies to it.
    pub mode: Mode,
    /// What that comes from.
    pub mode_from: ModeFrom,
    /// What its next watched call counts as; `None` where it isn't counted.
    pub verdict: Option<Verdict>,
    /// How its rejected calls end.
    pub answer: Answer,
}

impl Ruling {
    /// Whether calls are to be rejected, and the rejected ones answered quietly.
    pub fn is_quiet(self) -> bool {
        self.verdict == Some(Verdict::Rejected) && self.answer == Answer::Quiet
    }

    /// The programs' number for the verdict.
    pub const fn in_kernel(self) -> u32 {
        match self.verdict {
            None => verdict::OFF,
            Some(Verdict::WouldReject) => verdict::WOULD_REJECT,
            Some(Verdict::Rejected) => verdict::REJECTED,
            Some(Verdict::Admitted | Verdict::Unresolved) => verdict::ADMITTED,
        }
    }
}

/// Everything that the operator has said about replicas.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The mode where nothing else says otherwise.
    pub default: Mode,
    /// How rejected calls end, where no rule says otherwise; `None`: nobody has said.
    pub answer: Option<Answer>,
    /// The rules, in the order of the file.
    pub rules: Vec<Rule>,
    /// Replicas whose calls are admitted. It always contains 0.
    pub allowed: BTreeSet<u32>,
    /// What was set at run time, in the order in which it was. One for every replica can only be the first.
    changes: Vec<ModeChange>,
}

impl Policy {
    /// The policy without a word from the operator: audit, and replica 0 is allowed.
    pub fn new(default: Mode) -> Self {
        Self {
            default,
            answer: None,
            rules: Vec::new(),
            allowed: BTreeSet::from([0]),
            changes: Vec::new(),
        }
    }

    /// Whether a replica may come to be enforced, if nothing is said at run time.
    pub fn enforces(&self) -> bool {
        self.default == Mode::Enforce || self.rules.iter().any(|rule| rule.mode == Mode::Enforce)
    }

    /// The mode of the node, where no rule and nothing set at run time for some replicas says otherwise.
    pub fn node_mode(&self) -> Mode {
        match self.changes.first() {
            Some(change) if change.selector.is_everything() => change.mode,
            _ => self.default,
        }
    }

    /// What was set at run time, in the order in which it was. One for every replica can only be the first.
    pub fn overrides(&self) -> Vec<ModeOverride> {
        self.changes
            .iter()
            .map(|change| ModeOverride {
                mode: change.mode,
                answer: change.answer,
                namespace: change.selector.namespace().map(str::to_owned),
                pod: change.selector.pod().map(str::to_owned),
            })
            .collect()
    }

    /// Sets a mode at run time. It wins over everything said before; one for every replica replaces what was set at run
    /// time, and wins over the rules too: who switches off in an emergency means all of it.
    pub fn change(&mut self, change: ModeChange) -> Result<(), TooManyOverrides> {
        if change.selector.is_everything() {
            self.changes.clear();
        } else {
            let same = |other: &ModeChange| other.selector == change.selector;
            match self.changes.iter().position(same) {
                Some(place) => drop(self.changes.remove(place)),
                None if self.changes.len() >= MAX_OVERRIDES => return Err(TooManyOverrides),
                None => {}
            }
        }
        self.changes.push(change);
        Ok(())
    }

    fn rule(&self, identity: &Identity) -> Option<&Rule> {
        self.numbered_rule(identity).map(|(_, rule)| rule)
    }

    /// The last rule that matches, and its place in the file, from 0.
    fn numbered_rule(&self, identity: &Identity) -> Option<(usize, &Rule)> {
        let mut rules = self.rules.iter().enumerate().rev();
        rules.find(|(_, rule)| rule.matches(identity))
    }

    /// The mode of a replica of which discovery has nothing more to say.
    pub fn mode(&self, identity: &Identity) -> Mode {
        self.mode_of(identity, Say::default()).0
    }

    /// The mode of a replica: of what was set at run time, the last that matches; else its annotation; else of the rules, the
    /// last that matches; else the default. One that is held is audited where it would be enforced.
    fn mode_of(&self, identity: &Identity, say: Say) -> (Mode, ModeFrom) {
        match self.said(identity, say) {
            (Mode::Enforce, _) if say.held => (Mode::Audit, ModeFrom::Held),
            said => said,
        }
    }

    fn said(&self, identity: &Identity, say: Say) -> (Mode, ModeFrom) {
        if let Some(change) = self.changed(identity) {
            return (change.mode, ModeFrom::RunTime);
        }
        if let Some(mode) = say.annotation {
            return (mode, ModeFrom::Annotation);
        }
        match self.numbered_rule(identity) {
            Some((place, rule)) => (rule.mode, ModeFrom::Rule(place)),
            None => (self.default, ModeFrom::Default),
        }
    }

    /// The last that was set at run time for a replica.
    fn changed(&self, identity: &Identity) -> Option<&ModeChange> {
        let mut changes = self.changes.iter().rev();
        changes.find(|change| change.selector.matches(identity))
    }

    /// How its rejected calls end: of what was set at run time, the last that matches, if that says so; else of the rules, the last
    /// that matches; else the default.
    fn answer(&self, identity: &Identity) -> Answer {
        self.changed(identity)
            .and_then(|change| change.answer)
            .or_else(|| self.rule(identity).and_then(|rule| rule.answer))
            .or(self.answer)
            .unwrap_or_default()
    }

    /// Whether anybody has asked for quiet answers in so many words: who relies on the default has not.
    pub fn asks_for_quiet(&self) -> bool {
        let rules = self.rules.iter().map(|rule| rule.answer);
        let changes = self.changes.iter().map(|change| change.answer);
        rules
            .chain(changes)
            .chain([self.answer])
            .any(|answer| answer == Some(Answer::Quiet))
    }

    /// Whether a replica may call: it has a number, and that is allowed.
    pub fn allows(&self, replica: Replica) -> bool {
        match replica {
            Replica::Number(number) => self.allowed.contains(&number),
            Replica::Unknown => false,
        }
    }

    /// All that is said of a replica of which discovery has nothing more to say.
    pub fn ruling(&self, identity: &Identity) -> Ruling {
        self.ruling_of(identity, Say::default())
    }

    /// All that is said of a replica.
    pub fn ruling_of(&self, identity: &Identity, say: Say) -> Ruling {
        let admitted = match identity.replica {
            Replica::Number(number) => self.allowed.contains(&number),
            // Never reject what was not understood.
            Replica::Unknown => true,
        };
        let (mode, mode_from) = self.mode_of(identity, say);
        Ruling {
            mode,
            mode_from,
            verdict: match mode {
                Mode::Off => None,
                _ if admitted => Some(Verdict::Admitted),
                Mode::Audit => Some(Verdict::WouldReject),
                Mode::Enforce => Some(Verdict::Rejected),
            },
            answer: self.answer(identity),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            answer: None,
        }
    }

    fn change(mode: Mode, namespace: Option<&str>, pod: Option<&str>) -> ModeChange {
        ModeChange {
            mode,
            answer: None,
            selector: Selector::new(namespace, pod).unwrap(),
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
        use Replica::{Number, Unknown};
        let mut policy = Policy::new(Mode::Off);
        policy.allowed.insert(4);
        for (mode, allowed, other) in [
            (Mode::Off, None, None),
            (
                Mode::Audit,
                Some(Verdict::Admitted),
                Some(Verdict::WouldReject),
            ),
            (
                Mode::Enforce,
                Some(Verdict::Admitted),
                Some(Verdict::Rejected),
            ),
        ] {
            policy.default = mode;
            let ruling = |replica| policy.ruling(&identity("ns", "w", replica));
            for replica in [Number(0), Number(4), Unknown] {
                assert_eq!(ruling(replica).verdict, allowed, "{mode:?} {replica}");
            }
            for replica in [Number(1), Number(u32::MAX)] {
                assert_eq!(ruling(replica).verdict, other, "{mode:?} {replica}");
                assert_eq!(ruling(replica).mode, mode);
            }
        }
    }

    #[test]
    fn answers_are_what_was_said_last() {
        let mut policy = Policy {
            rules: vec![Rule {
                answer: Some(Answer::Quiet),
                ..rule("payments", "*", Mode::Enforce)
            }],
            answer: Some(Answer::Unimplemented),
            ..Policy::new(Mode::Enforce)
        };
        let answer = |policy: &Policy, namespace: &str| {
            let ruling = policy.ruling(&identity(namespace, "w", Replica::Number(1)));
            (ruling.mode, ruling.answer)
        };
        let (loud, quiet) = (Answer::Unimplemented, Answer::Quiet);
        assert_eq!(answer(&policy, "payments"), (Mode::Enforce, quiet));
        assert_eq!(answer(&policy, "a"), (Mode::Enforce, loud));
        // Who sets a mode says nothing of answers.
        policy.change(change(Mode::Enforce, None, None)).unwrap();
        assert_eq!(answer(&policy, "payments"), (Mode::Enforce, quiet));
        let say = |answer, namespace| ModeChange {
            answer: Some(answer),
            ..change(Mode::Enforce, namespace, None)
        };
        policy.change(say(loud, None)).unwrap();
        policy.change(say(quiet, Some("a"))).unwrap();
        assert_eq!(answer(&policy, "payments"), (Mode::Enforce, loud));
        assert_eq!(answer(&policy, "a"), (Mode::Enforce, quiet));
        assert_eq!(policy.overrides()[1].answer, Some(quiet));
    }

    #[test]
    fn where_a_mode_comes_from_is_told() {
        let mut policy = Policy {
            rules: vec![
                rule("a", "*", Mode::Enforce),
                rule("b", "*", Mode::Enforce),
                rule("b", "x", Mode::Off),
            ],
            ..Policy::new(Mode::Audit)
        };
        let from = |policy: &Policy, namespace: &str, workload: &str, say| {
            let identity = identity(namespace, workload, Replica::Number(1));
            let ruling = policy.ruling_of(&identity, say);
            (ruling.mode, ruling.mode_from)
        };
        let nothing = Say::default();
        let held = Say {
            held: true,
            ..nothing
        };
        let annotated = Say {
            annotation: Some(Mode::Enforce),
            ..nothing
        };
        let of = |namespace, workload, say| from(&policy, namespace, workload, say);
        assert_eq!(of("c", "x", nothing), (Mode::Audit, ModeFrom::Default));
        assert_eq!(of("b", "w", nothing), (Mode::Enforce, ModeFrom::Rule(1)));
        assert_eq!(of("b", "x", nothing), (Mode::Off, ModeFrom::Rule(2)));
        assert_eq!(
            of("b", "x", annotated),
            (Mode::Enforce, ModeFrom::Annotation)
        );
        // Only what is not done is held.
        assert_eq!(of("b", "w", held), (Mode::Audit, ModeFrom::Held));
        assert_eq!(of("b", "x", held), (Mode::Off, ModeFrom::Rule(2)));
        policy.change(change(Mode::Audit, Some("b"), None)).unwrap();
        let now = from(&policy, "b", "x", annotated);
        assert_eq!(now, (Mode::Audit, ModeFrom::RunTime));
        let written = [ModeFrom::Default, ModeFrom::Rule(1), ModeFrom::RunTime];
        assert_eq!(
            written.map(|from| from.to_string()),
            ["default", "rule[1]", "run time"]
        );
    }

    #[test]
    fn quiet_is_the_default_and_asked_for_only_in_words() {
        let mut policy = Policy::new(Mode::Enforce);
        let one = identity("a", "w", Replica::Number(1));
        assert!(policy.ruling(&one).is_quiet() && !policy.asks_for_quiet());
        policy.rules = vec![rule("a", "*", Mode::Enforce)];
        assert!(policy.ruling(&one).is_quiet() && !policy.asks_for_quiet());
        policy.rules[0].answer = Some(Answer::Quiet);
        assert!(policy.asks_for_quiet());
        policy.rules[0].answer = Some(Answer::Unimplemented);
        assert!(!policy.ruling(&one).is_quiet() && !policy.asks_for_quiet());
        policy.answer = Some(Answer::Quiet);
        assert!(!policy.ruling(&one).is_quiet() && policy.asks_for_quiet());
    }

    #[test]
    fn run_time_wins_over_rules_and_later_wins_over_earlier() {
        let mut policy = Policy {
            rules: vec![rule("payments", "*", Mode::Audit)],
            ..Policy::new(Mode::Audit)
        };
        let mode = |policy: &Policy, ns| policy.mode(&identity(ns, "w", Replica::Number(1)));
        policy
            .change(change(Mode::Enforce, Some("pay*"), None))
            .unwrap();
        assert_eq!(mode(&policy, "payments"), Mode::Enforce);
        assert_eq!(mode(&policy, "other"), Mode::Audit);
        assert_eq!(policy.node_mode(), Mode::Audit);
        // In an emergency: everything, whatever was said before.
        policy.change(change(Mode::Off, None, None)).unwrap();
        assert_eq!(mode(&policy, "payments"), Mode::Off);
        assert_eq!(policy.node_mode(), Mode::Off);
        let everything = ModeOverride {
            mode: Mode::Off,
            answer: None,
            namespace: None,
            pod: None,
        };
        assert_eq!(policy.overrides(), std::slice::from_ref(&everything));
        // And then one pod again.
        policy
            .change(change(Mode::Audit, Some("payments"), Some("p")))
            .unwrap();
        assert_eq!(mode(&policy, "payments"), Mode::Audit);
        assert_eq!(mode(&policy, "other"), Mode::Off);
        assert_eq!(policy.node_mode(), Mode::Off);
        let shown = ModeOverride {
            mode: Mode::Audit,
            answer: None,
            namespace: Some("payments".to_owned()),
            pod: Some("p".to_owned()),
        };
        assert_eq!(policy.overrides(), [everything, shown]);
    }

    #[test]
    fn an_equal_selector_is_replaced_and_counts_as_the_latest() {
        let mut policy = Policy::new(Mode::Audit);
        for (mode, namespace) in [
            (Mode::Enforce, "a*"),
            (Mode::Off, "ab"),
            (Mode::Audit, "a*"),
        ] {
            policy.change(change(mode, Some(namespace), None)).unwrap();
        }
        let all: Vec<_> = policy.overrides().iter().map(|o| o.mode).collect();
        assert_eq!(all, [Mode::Off, Mode::Audit]);
        let mode = policy.mode(&identity("ab", "w", Replica::Number(1)));
        assert_eq!(mode, Mode::Audit);
    }

    #[test]
    fn there_are_only_so_many() {
        let mut policy = Policy::new(Mode::Audit);
        let pod = |i: usize| change(Mode::Enforce, None, Some(&format!("p{i}")));
        for i in 0..MAX_OVERRIDES {
            policy.change(pod(i)).unwrap();
        }
        let full = policy.overrides();
        assert_eq!(policy.change(pod(MAX_OVERRIDES)), Err(TooManyOverrides));
        assert_eq!(policy.overrides(), full);
        // What replaces needs no room.
        assert_eq!(policy.change(pod(7)), Ok(()));
        assert_eq!(policy.change(change(Mode::Off, None, None)), Ok(()));
        assert_eq!(policy.overrides().len(), 1);
        assert_eq!(policy.change(pod(0)), Ok(()));
    }

    #[test]
    fn what_selects_nothing_is_refused() {
        use SelectorError::{Empty, Glob, Long};
        let long = "x".repeat(MAX_NAME + 1);
        let of = |namespace, pod| Selector::new(namespace, pod).unwrap_err();
        assert_eq!(of(Some(""), None), Empty("namespace"));
        assert_eq!(of(None, Some("")), Empty("pod"));
        assert_eq!(of(None, Some(&long)), Long("pod", MAX_NAME + 1));
        assert_eq!(of(Some(&long), None), Long("namespace", MAX_NAME + 1));
        let error = of(Some("a["), None);
        assert!(matches!(error, Glob("namespace", _)), "{error}");
        assert!(error.to_string().contains("a["), "{error}");
        // The longest alternatives of alternatives still compile.
        let worst = format!("{{{}}}", vec!["[!a-z]?**"; 25].join(","));
        assert!(Selector::new(Some(&worst), None).is_ok());
        // A pod's name is no glob.
        let selector = Selector::new(None, Some("*")).unwrap();
        assert!(!selector.matches(&identity("ns", "w", Replica::Unknown)));
    }

    #[test]
    fn of_a_source_only_pending_can_be_enforced() {
        assert_eq!(unenforceable(&[PENDING, "/a.B/C"]), None);
        assert_eq!(
            unenforceable(&[PENDING, "/source.v1.Source/ReadFn"]),
            Some(1)
        );
        assert_eq!(unenforceable(&["/source.v1.Source/PendingFnX"]), Some(0));
        assert_eq!(unenforceable(&["/source.v1.Sources/ReadFn"]), None);
    }

    const MODES: [Mode; 3] = [Mode::Off, Mode::Audit, Mode::Enforce];
    const NAMESPACES: [&str; 3] = ["a", "b", "ab"];
    const PODS: [&str; 2] = ["p", "q"];
    const GLOBS: [&str; 5] = ["a", "b", "a*", "*", "{b,ab}"];

    fn changes() -> impl Strategy<Value = Vec<ModeChange>> {
        let one = (
            prop::sample::select(&MODES),
            prop::option::of(prop::sample::select(&GLOBS)),
            prop::option::of(prop::sample::select(&PODS)),
        );
        let one = one.prop_map(|(mode, namespace, pod)| change(mode, namespace, pod));
        prop::collection::vec(one, 0..12)
    }

    fn says() -> impl Strategy<Value = Say> {
        let annotation = prop::option::of(prop::sample::select(&MODES));
        (annotation, any::<bool>()).prop_map(|(annotation, held)| Say { annotation, held })
    }

    #[test]
    fn an_annotation_wins_over_rules_and_run_time_over_both() {
        let mut policy = Policy {
            rules: vec![rule("*", "*", Mode::Audit)],
            ..Policy::new(Mode::Off)
        };
        let who = identity("a", "w", Replica::Number(1));
        let say = |annotation| Say {
            annotation,
            held: false,
        };
        for mode in MODES {
            assert_eq!(policy.ruling_of(&who, say(Some(mode))).mode, mode);
        }
        assert_eq!(policy.ruling_of(&who, say(None)).mode, Mode::Audit);
        policy.change(change(Mode::Off, None, None)).unwrap();
        let ruling = policy.ruling_of(&who, say(Some(Mode::Enforce)));
        assert_eq!((ruling.mode, ruling.verdict), (Mode::Off, None));
    }

    proptest! {
        /// Whatever anybody says: who is held is never rejected, and otherwise nothing changes for it.
        #[test]
        fn who_is_held_is_never_rejected(
            default in prop::sample::select(&MODES),
            changes in changes(),
            say in says(),
            number in 0..3_u32,
        ) {
            let mut policy = Policy::new(default);
            for change in changes {
                policy.change(change).unwrap();
            }
            for namespace in NAMESPACES {
                let who = identity(namespace, "w", Replica::Number(number));
                let held = policy.ruling_of(&who, Say { held: true, ..say });
                let free = policy.ruling_of(&who, Say { held: false, ..say });
                prop_assert_ne!(held.verdict, Some(Verdict::Rejected));
                match free.mode {
                    Mode::Enforce => prop_assert_eq!(held.mode, Mode::Audit),
                    _ => prop_assert_eq!(held, free),
                }
            }
        }

        /// Whatever was set, in whatever order: the last change that means a replica has the say; where there is none,
        /// the last rule; where there is none, the default.
        #[test]
        fn precedence(
            default in prop::sample::select(&MODES),
            rules in prop::collection::vec((prop::sample::select(&GLOBS), prop::sample::select(&MODES)), 0..4),
            changes in changes(),
        ) {
            let mut policy = Policy::new(default);
            policy.rules = rules.iter().map(|(glob, mode)| rule(glob, "*", *mode)).collect();
            for change in &changes {
                policy.change(change.clone()).unwrap();
            }
            for (namespace, pod) in NAMESPACES.iter().flat_map(|n| PODS.map(|p| (n, p))) {
                let mut who = identity(namespace, "w", Replica::Number(1));
                who.pod = pod.to_owned();
                let from_file = rules
                    .iter()
                    .rev()
                    .find(|(pattern, _)| glob(pattern).is_match(namespace))
                    .map_or(default, |(_, mode)| *mode);
                let expected = changes
                    .iter()
                    .rev()
                    .find(|change| change.selector.matches(&who))
                    .map_or(from_file, |change| change.mode);
                prop_assert_eq!(policy.mode(&who), expected);
                prop_assert_eq!(policy.ruling(&who).mode, expected);
            }
            // What is kept is no more than what counts.
            prop_assert!(policy.overrides().len() <= (GLOBS.len() + 1) * (PODS.len() + 1));
        }

        #[test]
        fn no_selector_makes_it_panic(namespace in "\\PC{0,300}", pod in "\\PC{0,300}") {
            let _ = Selector::new(Some(&namespace), Some(&pod));
        }

        /// Replica 0 and who has no number are never rejected, whatever is set.
        #[test]
        fn the_allowed_are_never_rejected(changes in changes()) {
            let mut policy = Policy::new(Mode::Enforce);
            for change in changes {
                policy.change(change).unwrap();
            }
            for replica in [Replica::Number(0), Replica::Unknown] {
                for namespace in NAMESPACES {
                    let verdict = policy.ruling(&identity(namespace, "w", replica)).verdict;
                    prop_assert!(matches!(verdict, None | Some(Verdict::Admitted)));
                }
            }
        }
    }
}
