//! `pendguard doctor`.
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::{block_on, clean, complain, print};
use crate::api::client;
use crate::cli::{DoctorArgs, ReportArgs};
use crate::errors::chain;
use crate::host::facts::Facts;
use crate::host::{Check, Need, Outcome, Probe, ProbeResult, ProgramProbe, checks};
use crate::tap::Enforcer;
use crate::tap::hooks::Kind;
use crate::version;

/// Enforcement is possible; with audit, of course.
const EXIT_ALL: u8 = 0;
/// Only audit is possible.
const EXIT_AUDIT: u8 = 1;
/// Neither is, or it could not be found out.
const EXIT_NOTHING: u8 = 2;

/// What `pendguard doctor --json` prints. Names are fixed: scripts hold on to them.
#[derive(Debug, Serialize)]
struct Report {
    /// Of this binary.
    version: &'static str,
    /// Whether audit is possible.
    audit: Verdict,
    /// Whether enforcement is possible.
    enforcement: Verdict,
    /// What the agent would observe with; `null` if it can't.
    tap: Option<&'static str>,
    /// What the agent would reject with; `null` if it can't.
    enforcer: Option<&'static str>,
    /// What would not be used, and why not.
    not_used: Vec<NotUsed>,
    /// Everything that was looked at.
    checks: Vec<Check>,
    /// The tap's programs, loaded for a trial; `null` if that wasn't tried.
    programs: Option<Vec<ProgramProbe>>,
    /// Whether an agent runs on this node.
    agent: Agent,
    /// What the process exits with.
    exit_status: u8,
}

#[derive(Debug, Serialize)]
struct Verdict {
    outcome: Outcome,
    /// The ids of the checks that stand in the way, or a sentence.
    because: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NotUsed {
    /// `tap` or `enforcer`.
    kind: &'static str,
    name: &'static str,
    because: String,
}

#[derive(Debug, Serialize)]
struct Agent {
    running: bool,
    detail: String,
}

/// Looks around, prints what there is, and says the exit status. `probe` loads the tap's programs for a trial.
pub fn run(arguments: &DoctorArgs, probe: Option<Probe>) -> u8 {
    let report = Report::new(
        &Facts::gather(&arguments.pin_dir),
        probe.map(|probe| probe()),
        agent(&arguments.report),
    );
    let text = if arguments.report.json {
        serde_json::to_string_pretty(&report)
            .map(|text| text + "\n")
            .map_err(Into::into)
    } else {
        let mut text = String::new();
        render(&report, &mut text)
            .map(|()| text)
            .map_err(anyhow::Error::from)
    };
    match text {
        Ok(text) => print(&text),
        Err(error) => complain(&error),
    }
    report.exit_status
}

fn agent(arguments: &ReportArgs) -> Agent {
    match block_on(client::fetch(&arguments.api_socket)) {
        Ok(Ok(answers)) => Agent {
            running: true,
            detail: format!(
                "version {}, pid {}, tap {}",
                answers.status.version, answers.status.pid, answers.status.tap
            ),
        },
        Ok(Err(client::ClientError::NoAgent(path))) => Agent {
            running: false,
            detail: format!("none listens on {}", path.display()),
        },
        Ok(Err(error)) => Agent {
            running: false,
            detail: error.to_string(),
        },
        Err(error) => Agent {
            running: false,
            detail: chain(error.as_ref()),
        },
    }
}

impl Report {
    fn new(facts: &Facts, probe: Option<ProbeResult>, agent: Agent) -> Self {
        let checks = checks::all(facts, probe.as_ref());
        let audit = checks::audit(&checks, probe.as_ref());
        let because = match audit {
            Outcome::Supported => Vec::new(),
            outcome => checks
                .iter()
                .filter(|check| check.needed_for == Need::Audit && check.outcome == outcome)
                .map(|check| check.id.to_owned())
                .collect(),
        };
        // In the order in which the agent takes them.
        let enforcers = [Enforcer::Rewrite, Enforcer::Gate]
            .map(|kind| (kind, checks::enforcer(&checks, audit, kind)));
        let possible =
            |(_, (outcome, _)): &&(Enforcer, checks::Possible)| *outcome == Outcome::Supported;
        let enforcer = enforcers.iter().find(possible).map(|(kind, _)| *kind);
        let nearest = enforcers.iter().min_by_key(|(_, (outcome, _))| *outcome);
        let (outcome, reasons) = match (enforcer, nearest) {
            (None, Some((_, nearest))) => nearest.clone(),
            _ => (Outcome::Supported, Vec::new()),
        };
        let enforcement = Verdict {
            outcome,
            because: reasons,
        };
        let fentry = checks::fentry_tap(&checks);
        let tap = match (audit, fentry.0) {
            (Outcome::Supported, Outcome::Supported) => Some(Kind::Fentry),
            (Outcome::Supported, _) => Some(Kind::Tracepoint),
            _ => None,
        };
        let mut not_used = Vec::new();
        let not = |kind, name, because: &[String]| NotUsed {
            kind,
            name,
            because: match because {
                [] => "another one goes first".to_owned(),
                because => because.join(", "),
            },
        };
        if tap != Some(Kind::Fentry) {
            not_used.push(not("tap", Kind::Fentry.name(), &fentry.1));
        }
        if tap == Some(Kind::Fentry) {
            not_used.push(not("tap", Kind::Tracepoint.name(), &[]));
        }
        for (kind, (_, because)) in &enforcers {
            if enforcer != Some(*kind) {
                not_used.push(not("enforcer", kind.name(), because));
            }
        }
        Self {
            version: version::VERSION,
            exit_status: exit_status(audit, enforcement.outcome),
            audit: Verdict {
                outcome: audit,
                because,
            },
            enforcer: enforcer.map(Enforcer::name),
            enforcement,
            not_used,
            tap: tap.map(Kind::name),
            checks,
            programs: probe.map(|probe| probe.programs),
            agent,
        }
    }
}

/// Only what was found to be possible counts.
fn exit_status(audit: Outcome, enforcement: Outcome) -> u8 {
    match (audit, enforcement) {
        (Outcome::Supported, Outcome::Supported) => EXIT_ALL,
        (Outcome::Supported, _) => EXIT_AUDIT,
        _ => EXIT_NOTHING,
    }
}

fn render(report: &Report, out: &mut String) -> fmt::Result {
    let width = report.checks.iter().map(|check| check.id.len()).max();
    let width = width.unwrap_or_default();
    let mut line = |outcome: Outcome, name: &str, detail: &str, consequence: &str| {
        let outcome = outcome.name();
        writeln!(out, "{outcome:<14} {name:<width$}  {}", clean(detail))?;
        if !consequence.is_empty() {
            writeln!(out, "{:<14} {:<width$}  → {consequence}", "", "")?;
        }
        Ok(())
    };
    for check in &report.checks {
        line(check.outcome, check.id, &check.detail, &check.consequence)?;
    }
    for program in report.programs.iter().flatten() {
        let verified = match program.verified_instructions {
            Some(count) => format!("{count} instructions verified"),
            None => String::new(),
        };
        let parts = [&*program.hook, &*program.detail, &*verified];
        let detail: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        line(program.outcome, program.name, &detail.join(": "), "")?;
    }
    let agent = if report.agent.running {
        "running"
    } else {
        "not running"
    };
    writeln!(
        out,
        "\nagent        {agent}: {}",
        clean(&report.agent.detail)
    )?;
    let tap = report.tap.map(|tap| format!("the {tap} tap"));
    let enforcer = report
        .enforcer
        .map(|enforcer| format!("enforcer {enforcer}"));
    verdict(out, "audit", &report.audit, tap)?;
    verdict(out, "enforcement", &report.enforcement, enforcer)?;
    for one in &report.not_used {
        let NotUsed {
            kind,
            name,
            because,
        } = one;
        writeln!(out, "{:<12} {kind} {name}: {because}", "not used")?;
    }
    Ok(())
}

fn verdict(out: &mut String, name: &str, verdict: &Verdict, with: Option<String>) -> fmt::Result {
    write!(out, "{name:<12} {}", verdict.outcome.name())?;
    if let Some(with) = with {
        write!(out, ", with {with}")?;
    }
    if !verdict.because.is_empty() {
        write!(out, ": {}", verdict.because.join(", "))?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::PIN_DIR;

    fn probe(outcome: Outcome) -> ProbeResult {
        ProbeResult {
            outcome,
            detail: "1 of 1 programs load".to_owned(),
            programs: vec![ProgramProbe {
                name: "exit_write",
                hook: "syscalls/sys_exit_write".to_owned(),
                outcome,
                detail: match outcome {
                    Outcome::Supported => String::new(),
                    _ => "unknown func".to_owned(),
                },
                verified_instructions: Some(99),
            }],
        }
    }

    fn report(probe: Option<ProbeResult>) -> Report {
        let agent = Agent {
            running: false,
            detail: "none".to_owned(),
        };
        Report::new(&Facts::gather(Path::new(PIN_DIR)), probe, agent)
    }

    #[test]
    fn exit_statuses_are_the_contract() {
        use Outcome::{Inconclusive, NotSupported, Supported};
        assert_eq!(exit_status(Supported, Supported), 0);
        assert_eq!(exit_status(Supported, NotSupported), 1);
        assert_eq!(exit_status(Supported, Inconclusive), 1);
        assert_eq!(exit_status(Inconclusive, NotSupported), 2);
        assert_eq!(exit_status(NotSupported, NotSupported), 2);
    }

    #[test]
    fn nothing_is_claimed_that_was_not_tried() {
        // Without a trial, or one that has not tried the gate.
        for probe in [None, Some(probe(Outcome::NotSupported))] {
            let report = report(probe);
            assert_ne!(report.exit_status, EXIT_ALL);
            assert_eq!(report.enforcer, None);
            assert!(report.not_used.iter().any(|one| one.name == "gate"));
        }
    }

    #[test]
    fn what_is_not_used_is_told_with_its_reason() {
        let report = report(None);
        let mut text = String::new();
        render(&report, &mut text).unwrap();
        for line in [
            "not used     tap fentry: ",
            "not used     enforcer rewrite: ",
            "not used     enforcer gate: ",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_trial_that_fails_is_told_with_its_reason() {
        let report = report(Some(probe(Outcome::NotSupported)));
        assert_eq!(report.exit_status, EXIT_NOTHING);
        assert!(report.audit.because.contains(&"tap_programs".to_owned()));
        assert_eq!(report.tap, None);
        let mut text = String::new();
        render(&report, &mut text).unwrap();
        assert!(
            text.contains("syscalls/sys_exit_write: unknown func"),
            "{text}"
        );
        assert!(
            text.contains("\nenforcement  not supported: it needs what audit needs"),
            "{text}"
        );
    }

    #[test]
    fn json_has_stable_names() {
        let json = serde_json::to_value(report(Some(probe(Outcome::Supported)))).unwrap();
        for key in [
            "version",
            "audit",
            "enforcement",
            "tap",
            "enforcer",
            "not_used",
            "checks",
            "programs",
            "agent",
            "exit_status",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["not_used"][1]["name"], "rewrite");
        assert_eq!(json["checks"][0]["id"], "kernel");
        assert_eq!(json["checks"][0]["needed_for"], "audit");
        assert_eq!(json["programs"][0]["verified_instructions"], 99);
    }
}
