//! `pendguard mode`.
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{block_on, clean, complain, print, report};
use crate::api::client::ClientError;
use crate::api::{client, pb};
use crate::cli::ModeArgs;
use crate::model::{Answer, Mode};

/// How long the user waits without a word.
const LONG: Duration = Duration::from_secs(3);

/// What `pendguard mode --json` prints. Names are fixed: scripts hold on to them.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The mode that was set.
    mode: &'static str,
    /// How rejected calls end: `unimplemented` or `quiet`; `null`: as the configuration says.
    answer: Option<&'static str>,
    /// The namespaces that it is for, a glob; `null` for all.
    namespace: Option<&'a str>,
    /// The pod that it is for; `null` for all.
    pod: Option<&'a str>,
    /// How many living replicas of the node have which mode now; every mode is there.
    replicas: Replicas,
    /// What an operator should know, in sentences.
    warnings: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Replicas {
    off: u64,
    audit: u64,
    enforce: u64,
}

/// Sets the mode and prints what it came to. 0, or 1 if it isn't set.
pub fn run(arguments: &ModeArgs) -> u8 {
    match text(arguments) {
        Ok(text) => {
            print(&text);
            0
        }
        Err(error) => {
            complain(&error);
            1
        }
    }
}

fn text(arguments: &ModeArgs) -> anyhow::Result<String> {
    let mode = match arguments.mode {
        Mode::Off => pb::Mode::Off,
        Mode::Audit => pb::Mode::Audit,
        Mode::Enforce => pb::Mode::Enforce,
    };
    let answer = match arguments.answer {
        None => pb::Answer::Unspecified,
        Some(Answer::Unimplemented) => pb::Answer::Unimplemented,
        Some(Answer::Quiet) => pb::Answer::Quiet,
    };
    let request = pb::SetModeRequest {
        mode: mode.into(),
        answer: answer.into(),
        namespace: arguments.namespace.clone(),
        pod: arguments.pod.clone(),
    };
    let response = block_on(set(&arguments.report.api_socket, request))??;
    let report = Report {
        mode: report::mode(mode),
        answer: report::answer(answer),
        namespace: arguments.namespace.as_deref(),
        pod: arguments.pod.as_deref(),
        replicas: replicas(&response.replicas),
        warnings: response.warnings,
    };
    if arguments.report.json {
        return Ok(serde_json::to_string_pretty(&report)? + "\n");
    }
    let mut text = String::new();
    render(&report, &mut text)?;
    Ok(text)
}

/// Asks the agent, and says so where it takes long.
async fn set(
    socket: &Path,
    request: pb::SetModeRequest,
) -> Result<pb::SetModeResponse, ClientError> {
    let mut answer = std::pin::pin!(client::set_mode(socket, request));
    match tokio::time::timeout(LONG, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            eprintln!(
                "pendguard: waiting for the agent, which loads the programs that reject calls; on a slow or busy node that can take minutes"
            );
            answer.await
        }
    }
}

fn replicas(counts: &[pb::ModeCount]) -> Replicas {
    let mut replicas = Replicas::default();
    for count in counts {
        match count.mode() {
            pb::Mode::Off => replicas.off += count.replicas,
            pb::Mode::Audit => replicas.audit += count.replicas,
            pb::Mode::Enforce => replicas.enforce += count.replicas,
            pb::Mode::Unspecified => {}
        }
    }
    replicas
}

fn render(report: &Report<'_>, out: &mut String) -> fmt::Result {
    write!(out, "mode {}", report.mode)?;
    if let Some(answer) = report.answer {
        write!(out, ", answer {answer},")?;
    }
    out.push_str(" is set for ");
    match (report.namespace, report.pod) {
        (None, None) => write!(out, "every replica")?,
        (Some(namespace), None) => write!(out, "namespace {}", clean(namespace))?,
        (None, Some(pod)) => write!(out, "pod {}", clean(pod))?,
        (Some(namespace), Some(pod)) => {
            write!(out, "namespace {}, pod {}", clean(namespace), clean(pod))?;
        }
    }
    let Replicas {
        off,
        audit,
        enforce,
    } = report.replicas;
    writeln!(
        out,
        ", until the agent ends\nreplicas     {off} off, {audit} audit, {enforce} enforce"
    )?;
    for warning in &report.warnings {
        writeln!(out, "warning: {}", clean(warning))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(mode: pb::Mode, replicas: u64) -> pb::ModeCount {
        pb::ModeCount {
            mode: mode.into(),
            replicas,
        }
    }

    fn report<'a>(namespace: Option<&'a str>, pod: Option<&'a str>) -> Report<'a> {
        let counts = [count(pb::Mode::Enforce, 4), count(pb::Mode::Off, 1)];
        Report {
            mode: "off",
            answer: None,
            namespace,
            pod,
            replicas: replicas(&counts),
            warnings: vec!["be\u{7}ware".to_owned()],
        }
    }

    #[test]
    fn for_people() {
        for (namespace, pod, whom) in [
            (None, None, "every replica"),
            (Some("a*"), None, "namespace a*"),
            (None, Some("p"), "pod p"),
            (Some("a*"), Some("p\n"), "namespace a*, pod p\u{fffd}"),
        ] {
            let mut text = String::new();
            render(&report(namespace, pod), &mut text).unwrap();
            assert_eq!(
                text,
                format!(
                    "mode off is set for {whom}, until the agent ends\nreplicas     1 off, 0 audit, 4 enforce\n\
                     warning: be\u{fffd}ware\n"
                )
            );
        }
    }

    #[test]
    fn an_answer_is_said() {
        let quiet = Report {
            answer: Some("quiet"),
            mode: "enforce",
            ..report(None, None)
        };
        let mut text = String::new();
        render(&quiet, &mut text).unwrap();
        let begins = "mode enforce, answer quiet, is set for every replica, until";
        assert!(text.starts_with(begins), "{text}");
    }

    #[test]
    fn for_scripts() {
        let json = serde_json::to_value(report(Some("a*"), None)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "mode": "off", "answer": null, "namespace": "a*", "pod": null,
                "replicas": {"off": 1, "audit": 0, "enforce": 4}, "warnings": ["be\u{7}ware"],
            })
        );
    }

    #[test]
    fn modes_of_later_versions_are_left_out() {
        let later = pb::ModeCount {
            mode: 99,
            replicas: 5,
        };
        assert_eq!(replicas(&[later]), Replicas::default());
    }
}
