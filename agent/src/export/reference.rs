//! The reference of the metrics, `docs/metrics.md`: written from what is exported, so that it stays true.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use agent_common::abi::answers::Code;
use agent_common::abi::{Failure, Manner, Reason};

use super::families::{FAMILIES, Family};
use super::otlp;
use crate::discovery::kube;
use crate::model::Verdict;

const HEAD: &str = "\
# Metrics

<!-- Written by `PENDGUARD_UPDATE_DOCS=1 cargo test -p pendguard --lib reference`; a test fails where it differs. -->

`pendguard run` serves these on `/metrics` (`--metrics-listen`): in Prometheus' text format 0.0.4, or in OpenMetrics 1.0.0 for clients
whose `Accept` header prefers `application/openmetrics-text; version=1.0.0`. Counters grow until the agent is restarted; series of a replica go some
time after it has left the node. A metric without a series is left out.
";

const OTLP: &str = "
## Over OTLP

With `--otlp-endpoint` they are sent to a collector, too: counters as monotonic cumulative sums, the histogram with explicit, inclusive
bounds. The labels of a replica become `k8s.namespace.name`, `k8s.pod.name`, `numaflow.workload.kind`, `numaflow.workload.name`,
`numaflow.vertex.name` and `numaflow.replica`; `method` becomes `rpc.method`, without the first slash and beside `rpc.system.name`; `code` becomes
`rpc.response.status_code`, and `error.type` where it is not `OK`. What is no status is in `error.type` only (`RESET`, `CONNECTION_LOST`), or in
`pendguard.code` (`UNRESOLVED`, which may have been `OK`). Other labels are attributes `pendguard.LABEL`; empty ones are left out. The resource has
`service.name` (`pendguard`), `service.version`, `service.instance.id` and `host.name`.

";

/// What each label says.
const LABELS: &[(&str, &str)] = &[
    ("namespace", "Kubernetes namespace of the replica"),
    (
        "kind",
        "`MonoVertex` or `Pipeline`; of `pendguard_tap_info` and `pendguard_enforcer_info`, what is in use",
    ),
    ("workload", "name of the MonoVertex or Pipeline"),
    ("vertex", "name of the vertex; empty for a MonoVertex"),
    ("pod", "name of the pod"),
    ("replica", "number of the replica, or `unknown`"),
    ("method", "full path of the method"),
    ("verdict", "what became of the call, see below"),
    ("code", "how the call ended, see below"),
    (
        "answer",
        "how a rejected call ended: `unimplemented` or `quiet`",
    ),
    ("reason", "why, see below"),
    ("mode", "`off`, `audit` or `enforce`"),
    ("state", "`synced`, `unsynced`, `latched` or `gated`"),
    (
        "numaflow_version",
        "tag of the image of Numaflow's container",
    ),
    (
        "resource",
        "`pods` (Numaflow's, of this node) or `namespaces`",
    ),
    ("map", "name of a BPF map"),
    ("program", "name of a BPF program"),
    ("version", "version of the agent"),
    ("revision", "revision that it was built from"),
    ("rustc", "compiler that built it"),
];

const VERDICTS: [Verdict; 4] = [
    Verdict::Admitted,
    Verdict::WouldReject,
    Verdict::Rejected,
    Verdict::Unresolved,
];

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Admitted => {
            "the call of an allowed replica, or of one whose number is unknown, or one that should have been rejected and went through"
        }
        Verdict::WouldReject => {
            "the call of another replica: it went through, and enforcement would have rejected it"
        }
        Verdict::Rejected => "the call of another replica: the source's handler never saw it",
        Verdict::Unresolved => "a call was seen, but not which method it called",
    }
}

const fn code(code: Code) -> &'static str {
    match code {
        Code::Reset => "no status: the source reset the stream",
        Code::ConnectionLost => "no status: the connection closed before the answer came",
        Code::Unresolved => {
            "a status that can't be known: an index into what the source sent before anybody watched"
        }
        Code::Ok => "gRPC's status 0",
        Code::Unimplemented => {
            "gRPC's status 12; so end calls that are rejected, but for those below"
        }
        Code::Quiet => "gRPC's status 0, without a count: a call that was rejected quietly",
        _ => "",
    }
}

/// The whole file.
fn reference() -> String {
    let mut out = HEAD.to_owned();
    out.push('\n');
    table(
        &mut out,
        ["metric", "type", "unit", "labels", "what it tells"],
        FAMILIES.iter().map(family),
    );
    let buckets: Vec<String> = super::sums::SHOWN_NS
        .iter()
        .map(|ns| (*ns as f64 / 1e9).to_string())
        .collect();
    // Writing to a string doesn't fail.
    let _ = writeln!(
        out,
        "\nBuckets of the histogram, in seconds: {}. They are exact: the kernel counts in finer ones that include these bounds.",
        buckets.join(", ")
    );
    out.push_str(OTLP);
    let names = FAMILIES.iter().map(|family| {
        let unit = match otlp::unit(family.unit) {
            unit if unit.is_empty() => unit,
            unit => quoted(&unit),
        };
        [quoted(family.name), quoted(&otlp::name(family)), unit]
    });
    table(&mut out, ["metric", "over OTLP", "unit"], names);
    out.push_str("\n## Labels\n\n");
    let labels = LABELS
        .iter()
        .map(|(name, help)| [quoted(name), (*help).to_owned()]);
    table(&mut out, ["label", "what it says"], labels);
    section(
        &mut out,
        "verdict",
        "pendguard_calls_total",
        VERDICTS.map(|v| (v.name(), verdict(v).to_owned())),
    );
    let codes = Code::ALL.map(|c| {
        let meaning = match code(c) {
            "" => format!("gRPC's status {}", c as u32),
            meaning => meaning.to_owned(),
        };
        (c.name(), meaning)
    });
    section(&mut out, "code", "pendguard_call_duration_seconds", codes);
    let unparsed = Reason::ALL.map(|r| (r.name(), r.help().to_owned()));
    section(&mut out, "reason", "pendguard_unparsed_total", unparsed);
    section(
        &mut out,
        "reason",
        "pendguard_rejections_total",
        Manner::ALL.map(|m| (m.name(), m.help().to_owned())),
    );
    section(
        &mut out,
        "reason",
        "pendguard_enforcement_failures_total",
        Failure::ALL.map(|f| (f.name(), f.help().to_owned())),
    );
    section(
        &mut out,
        "reason",
        "pendguard_kube_watch_errors_total",
        kube::failure::Reason::ALL.map(|r| (r.name(), r.help().to_owned())),
    );
    out
}

fn section<const N: usize>(
    out: &mut String,
    label: &str,
    metric: &str,
    values: [(&str, String); N],
) {
    let _ = writeln!(out, "\n## `{label}` of `{metric}`\n");
    let rows = values.map(|(name, meaning)| [quoted(name), meaning]);
    table(out, [label, "meaning"], rows.into_iter());
}

fn family(family: &Family) -> [String; 5] {
    let labels: Vec<String> = family.labels.iter().map(|label| quoted(label)).collect();
    [
        quoted(family.name),
        family.kind.name().to_owned(),
        family.unit.to_owned(),
        labels.join(" "),
        family.help.to_owned(),
    ]
}

fn quoted(text: &str) -> String {
    format!("`{text}`")
}

fn table<const N: usize>(
    out: &mut String,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let _ = writeln!(out, "| {} |\n|{}", head.join(" | "), "---|".repeat(N));
    for row in rows {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
}

mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_reference_is_true() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let reference = reference();
        if std::env::var_os("PENDGUARD_UPDATE_DOCS").is_some_and(|value| value == "1") {
            std::fs::write(path, &reference).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == reference,
            "docs/metrics.md is not what is exported: PENDGUARD_UPDATE_DOCS=1 cargo test -p pendguard --lib reference"
        );
    }

    #[test]
    fn every_label_is_explained_and_no_other() {
        let used: BTreeSet<&str> = FAMILIES.iter().flat_map(|f| f.labels).copied().collect();
        let explained: BTreeSet<&str> = LABELS.iter().map(|(name, _)| *name).collect();
        assert_eq!(used, explained);
        assert_eq!(explained.len(), LABELS.len());
    }

    #[test]
    fn no_cell_breaks_its_table() {
        for line in reference().lines().filter(|line| line.starts_with('|')) {
            assert!(!line.contains('\n') && line.ends_with('|'), "{line}");
        }
        let texts = FAMILIES.iter().map(|f| f.help);
        let texts = texts.chain(Reason::ALL.map(Reason::help));
        assert!(
            texts
                .chain(Failure::ALL.map(Failure::help))
                .all(|text| !text.contains('|'))
        );
    }
}
