//! `pendguard status`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use comfy_table::CellAlignment;

use super::report::{ADMITTED, KubeWatch, MapFill, REJECTED, Replica, Report, WOULD_REJECT};
use super::savings::Savings;
use super::{block_on, clean, complain, duration, pending, print, table, took_or_dash, workload};
use crate::api::client;
use crate::cli::ReportArgs;

/// Asks the agent and prints what it says. 0, or 1 if there is no answer.
pub fn run(arguments: &ReportArgs) -> u8 {
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

fn text(arguments: &ReportArgs) -> anyhow::Result<String> {
    let answers = block_on(client::fetch(&arguments.api_socket))??;
    let report = Report::new(answers, SystemTime::now());
    if arguments.json {
        return Ok(serde_json::to_string_pretty(&report)? + "\n");
    }
    let mut text = String::new();
    render(&report, &mut text)?;
    Ok(text)
}

/// The report for people, made to fit into 100 columns as long as names are short.
fn render(report: &Report, out: &mut String) -> fmt::Result {
    head(report, out)?;
    if report.replicas.is_empty() {
        return writeln!(out, "\nno source replica on this node");
    }
    replicas(&report.replicas, out)?;
    savings(&report.savings, out)
}

/// What enforcement saves, or would, where there is anything to save.
fn savings(savings: &[Savings], out: &mut String) -> fmt::Result {
    let mut lines = String::new();
    for of in savings {
        let name = workload(&of.namespace, &of.workload, &of.vertex);
        for (what, saving) in [("would save", of.would_save), ("saves", of.saves)] {
            if let Some(saving) = saving {
                writeln!(lines, "{what:<12} {name}: {}", saving.text())?;
            }
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    write!(out, "\n{lines}")
}

fn head(report: &Report, out: &mut String) -> fmt::Result {
    let agent = &report.agent;
    let uptime = duration(Duration::from_secs(agent.uptime_seconds));
    writeln!(
        out,
        "pendguard {}: mode {}, tap {}, enforcer {}, up {uptime}, pid {}",
        clean(&agent.version),
        report.mode,
        clean(&report.tap),
        clean(&report.enforcer),
        agent.pid
    )?;
    let methods: Vec<_> = report.methods.iter().map(|method| clean(method)).collect();
    writeln!(out, "watched      {}", methods.join("\n             "))?;
    let connections = report.connections;
    let (synced, unsynced) = (connections.synced, connections.unsynced);
    write!(out, "connections  {synced} synced, {unsynced} unsynced")?;
    match connections.latched {
        0 => writeln!(out)?,
        latched => writeln!(out, ", {latched} latched")?,
    }
    for set in &report.overrides {
        write!(out, "at run time  mode {}", set.mode)?;
        if let Some(answer) = set.answer {
            write!(out, ", answer {answer}")?;
        }
        if set.namespace.is_none() && set.pod.is_none() {
            write!(out, ", every replica")?;
        }
        if let Some(namespace) = &set.namespace {
            write!(out, ", namespace {}", clean(namespace))?;
        }
        if let Some(pod) = &set.pod {
            write!(out, ", pod {}", clean(pod))?;
        }
        writeln!(out)?;
    }
    if let Some(reason) = &report.enforcer_reason {
        writeln!(out, "no enforcer  {}", clean(reason))?;
    }
    api_server(&report.kube, out)?;
    reasons(out, "unparsed     ", &report.unparsed)?;
    reasons(out, "not rejected ", &report.enforcement_failures)?;
    if !report.answers {
        writeln!(out, "answers      not followed: no call is timed")?;
    }
    if report.events_lost > 0 {
        writeln!(out, "events lost  {}", report.events_lost)?;
    }
    if let Some(reason) = &report.not_ready {
        writeln!(out, "not ready: {}", clean(reason))?;
    }
    for program in &report.programs {
        if let Some(error) = &program.error {
            let (name, hook) = (clean(&program.name), clean(&program.hook));
            writeln!(
                out,
                "warning: {name} isn't attached to {hook}: {}",
                clean(error)
            )?;
        }
    }
    for warning in report.maps.iter().filter_map(MapFill::warning) {
        writeln!(out, "warning: {warning}")?;
    }
    for warning in &report.warnings {
        writeln!(out, "warning: {}", clean(warning))?;
    }
    Ok(())
}

/// What is followed of the API server, where it is asked.
fn api_server(watches: &BTreeMap<String, KubeWatch>, out: &mut String) -> fmt::Result {
    if watches.is_empty() {
        return Ok(());
    }
    let told = watches.iter().map(|(resource, watch)| {
        let not = if watch.synced { "" } else { "not " };
        format!("{} {not}synced", clean(resource))
    });
    writeln!(out, "API server   {}", told.collect::<Vec<_>>().join(", "))
}

/// How often something happened by reason, if it did.
fn reasons(out: &mut String, what: &str, counts: &BTreeMap<String, u64>) -> fmt::Result {
    let happened: Vec<String> = counts
        .iter()
        .filter(|&(_, &count)| count > 0)
        .map(|(reason, count)| format!("{} {count}", clean(reason)))
        .collect();
    if happened.is_empty() {
        return Ok(());
    }
    writeln!(out, "{what}{}", happened.join(", "))
}

/// As [`Replica::mode_from`] has it: nothing worth saying.
const DEFAULT: &str = "default";

/// What replicas that are shown together have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    namespace: &'a str,
    workload: &'a str,
    vertex: &'a str,
    kind: &'a str,
    mode: &'a str,
    mode_from: &'a str,
    /// `None` where it is not known. While a workload is upgraded it has two.
    numaflow: Option<&'a str>,
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = workload(self.namespace, self.workload, self.vertex);
        write!(f, "{name} ({}), mode {}", self.kind, self.mode)?;
        if self.mode_from != DEFAULT {
            write!(f, " ({})", clean(self.mode_from))?;
        }
        match self.numaflow {
            Some(version) => write!(f, ", Numaflow {}", clean(version)),
            None => Ok(()),
        }
    }
}

const HEADER: [&str; 10] = [
    "REPLICA",
    "ADMITTED",
    "WOULD_REJECT",
    "REJECTED",
    "UNRESOLVED",
    "CONNS",
    "P50",
    "P99",
    "PENDING",
    "POD",
];

fn replicas(replicas: &[Replica], out: &mut String) -> fmt::Result {
    let mut groups: BTreeMap<Group<'_>, Vec<&Replica>> = BTreeMap::new();
    for replica in replicas {
        let group = Group {
            namespace: &replica.namespace,
            workload: &replica.workload,
            vertex: &replica.vertex,
            kind: replica.kind,
            mode: replica.mode,
            mode_from: &replica.mode_from,
            numaflow: replica.numaflow_version.as_deref(),
        };
        groups.entry(group).or_default().push(replica);
    }
    // One table, so that all groups have the same columns; then their headings in between its lines.
    let mut table = table();
    table.set_header(HEADER);
    for (i, column) in table.column_iter_mut().enumerate() {
        // One space between columns: there are many.
        column.set_padding((1, 0));
        if i < HEADER.len() - 1 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for group in groups.values_mut() {
        // Unknown ones come last.
        group.sort_by_key(|replica| (replica.replica.is_none(), replica.replica, &replica.pod));
        for replica in group {
            table.add_row(row(replica));
        }
    }
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    writeln!(out, "\n{}", header.trim_end())?;
    for (group, members) in &groups {
        writeln!(out, "{group}")?;
        // In this order: what is asked first is asked once more than there are members.
        for (replica, line) in members.iter().zip(lines.by_ref()) {
            writeln!(out, "{}", line.trim_end())?;
            let failures = replica.failures();
            if !failures.is_empty() {
                writeln!(out, "{:>8} ended {failures}", "")?;
            }
        }
    }
    Ok(())
}

fn row(replica: &Replica) -> [String; 10] {
    let took = replica.took();
    let number = match replica.replica {
        Some(number) => number.to_string(),
        None => "unknown".to_owned(),
    };
    let connections = replica.connections.synced + replica.connections.unsynced;
    let pod = clean(&replica.pod);
    [
        number,
        replica.calls_with(ADMITTED).to_string(),
        replica.calls_with(WOULD_REJECT).to_string(),
        replica.calls_with(REJECTED).to_string(),
        replica.unresolved.to_string(),
        match replica.connections.latched {
            0 => connections.to_string(),
            latched => format!("{connections} ({latched} latched)"),
        },
        took_or_dash(took.quantile(0.5)),
        took_or_dash(took.quantile(0.99)),
        pending(replica.pending),
        match replica.gone {
            Some(_) => format!("{pod} (gone)"),
            None => pod.into_owned(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::About;
    use crate::api::server::serve;
    use crate::api::socket::ApiSocket;
    use crate::engine::{Handle, fake};
    use crate::model::{
        Answer, Kind, MapFill as Fill, Mode, ModeFrom, ModeOverride, Replica as Number,
        ReplicaStatus, Snapshot, Verdict,
    };
    use agent_common::abi::answers::Code;
    use tokio_util::sync::CancellationToken;

    /// The whole way: engine, server, socket, client, report.
    fn report(snapshot: Snapshot) -> Report {
        block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("api.sock");
            let socket = ApiSocket::bind(&path).await.unwrap();
            let about = About {
                pid: 42,
                started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            };
            let stop = CancellationToken::new();
            let engine = Handle::new(fake::Fake::new(snapshot));
            tokio::spawn(serve(socket, engine, about, stop));
            let answers = client::fetch(&path).await.unwrap();
            Report::new(answers, about.started + Duration::from_secs(125))
        })
        .unwrap()
    }

    /// Calls that ended so, after so many µs.
    fn answered(replica: &mut ReplicaStatus, code: Code, micros: &[u64]) {
        let durations = replica.durations.entry((0, code)).or_default();
        for &micros in micros {
            durations.record(Duration::from_micros(micros));
        }
    }

    fn rendered(snapshot: Snapshot) -> String {
        let mut text = String::new();
        render(&report(snapshot), &mut text).unwrap();
        text
    }

    #[test]
    fn a_table_for_people() {
        let mut snapshot = fake::three();
        snapshot.warnings.push("beware".to_owned());
        let mut vertex = fake::replica(Number::Number(10), 123_456);
        vertex.identity.kind = Kind::Pipeline;
        vertex.identity.vertex = "in".to_owned();
        vertex.mode = Mode::Off;
        vertex.gone = Some(SystemTime::UNIX_EPOCH);
        vertex.unresolved = 3;
        answered(
            &mut snapshot.replicas[0],
            Code::Ok,
            &[3_000, 3_200, 3_400, 5_600],
        );
        answered(&mut snapshot.replicas[1], Code::Cancelled, &[1_000]);
        snapshot.replicas[0].pending = Some(42);
        snapshot.replicas[2].pending = Some(-1);
        snapshot.replicas.insert(0, vertex);
        let text = rendered(snapshot);
        let expected = format!(
            "\
pendguard {}: mode audit, tap tracepoint, enforcer none, up 2 min, pid 42
watched      /source.v1.Source/PendingFn
connections  3 synced, 0 unsynced
no enforcer  not tried
warning: exit_sendto isn't attached to syscalls/sys_exit_sendto: no such tracepoint
warning: beware

 REPLICA ADMITTED WOULD_REJECT REJECTED UNRESOLVED CONNS    P50    P99 PENDING POD
payments/orders (MonoVertex), mode audit
       0        9            0        0          0     1 3.35ms 5.59ms      42 orders-mv-0-abcde
       1        0            8        0          0     1  975µs 1.00ms       - orders-mv-1-abcde
         ended CANCELLED 1
 unknown        7            0        0          0     1      -      -     n/a orders-mv-unknown-abcde
payments/orders/in (Pipeline), mode off
      10        0       123456        0          3     1      -      -       - orders-mv-10-abcde (gone)

would save   payments/orders: 230 calls an hour, 876ms of the source's time
",
            crate::version::VERSION
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn troubles_are_shown_and_their_absence_is_not() {
        let quiet = rendered(fake::empty());
        assert!(
            quiet.ends_with("\nno source replica on this node\n"),
            "{quiet}"
        );
        assert!(!quiet.contains("unparsed") && !quiet.contains("events lost"));
        assert!(!quiet.contains("answers"), "{quiet}");
        let mut snapshot = fake::empty();
        snapshot.answers = false;
        snapshot.events_lost = 2;
        snapshot.unparsed = vec![(agent_common::abi::Reason::Tls, 3)];
        let text = rendered(snapshot);
        assert!(
            text.contains(
                "unparsed     tls 3\nanswers      not followed: no call is timed\nevents lost  2\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn enforcement_is_shown() {
        let mut snapshot = fake::three();
        snapshot.enforcer = Some("gate");
        snapshot.enforcer_reason = None;
        snapshot.failures = vec![("candidate", 3)];
        snapshot.replicas[1].mode = Mode::Enforce;
        snapshot.replicas[1].mode_from = ModeFrom::Annotation;
        snapshot.replicas[1].latched = 1;
        let calls = &mut snapshot.replicas[1].calls;
        calls.insert((0, Verdict::Rejected), 77);
        let set = |mode, namespace: Option<&str>, pod: Option<&str>| ModeOverride {
            mode,
            answer: (mode == Mode::Enforce).then_some(Answer::Quiet),
            namespace: namespace.map(str::to_owned),
            pod: pod.map(str::to_owned),
        };
        snapshot.overrides = vec![
            set(Mode::Audit, None, None),
            set(Mode::Enforce, Some("pay*"), None),
            set(Mode::Audit, Some("payments"), Some("orders-mv-0-abcde")),
            set(Mode::Off, None, Some("x\u{1b}")),
        ];
        let text = rendered(snapshot.clone());
        for line in [
            "mode audit, tap tracepoint, enforcer gate, up",
            "connections  3 synced, 0 unsynced, 1 latched\n",
            "at run time  mode audit, every replica\n",
            "at run time  mode enforce, answer quiet, namespace pay*\n",
            "at run time  mode audit, namespace payments, pod orders-mv-0-abcde\n",
            "at run time  mode off, pod x\u{fffd}\n",
            "not rejected candidate 3\n",
            "payments/orders (MonoVertex), mode enforce (annotation)\n",
            "         8       77          0 1 (1 latched)   - ",
            "saves        payments/orders: 2448 calls an hour\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("no enforcer"), "{text}");
        let json = serde_json::to_value(report(snapshot)).unwrap();
        assert_eq!(json["enforcer"], "gate");
        assert_eq!(json.get("enforcer_reason"), None);
        assert_eq!(json["enforcement_failures"]["candidate"], 3);
        assert_eq!(json["overrides"][1]["mode"], "enforce");
        assert_eq!(json["overrides"][1]["answer"], "quiet");
        assert_eq!(json["overrides"][0]["answer"], serde_json::Value::Null);
        assert_eq!(json["overrides"][1]["namespace"], "pay*");
        assert_eq!(json["overrides"][1]["pod"], serde_json::Value::Null);
        assert_eq!(json["connections"]["latched"], 1);
        let replica = &json["replicas"][1];
        assert_eq!(replica["mode"], "enforce");
        assert_eq!(replica["mode_from"], "annotation");
        assert_eq!(replica["connections"]["latched"], 1);
        assert_eq!(replica["calls"][1]["verdict"], "rejected");
        assert_eq!(replica["calls"][1]["count"], 77);
    }

    #[test]
    fn the_api_server_is_shown_where_it_is_asked() {
        let mut snapshot = fake::three();
        assert!(!rendered(snapshot.clone()).contains("API server"));
        snapshot.kube = fake::watches();
        snapshot.replicas[1].numaflow_version = Some("v1.4.5".to_owned());
        let text = rendered(snapshot.clone());
        let line = "API server   namespaces not synced, pods synced\n";
        assert!(text.contains(line), "{text}");
        let json = serde_json::to_value(report(snapshot)).unwrap();
        assert_eq!(json["kube"]["pods"]["synced"], true);
        assert_eq!(json["kube"]["namespaces"]["errors"]["forbidden"], 3);
        assert_eq!(json["replicas"][1]["numaflow_version"], "v1.4.5");
        let unknown = &json["replicas"][0]["numaflow_version"];
        assert_eq!(unknown, &serde_json::Value::Null);
    }

    /// What readers of docs/install.md are told to expect.
    #[test]
    fn the_sample_of_the_docs() {
        let mut snapshot = fake::empty();
        let reason = "not tried, as nothing is enforced; `pendguard doctor` tries it";
        snapshot.enforcer_reason = Some(reason.to_owned());
        snapshot.kube = fake::watches();
        snapshot.kube[1].synced = true;
        for number in [0, 1] {
            let mut replica = fake::replica(Number::Number(number), 24);
            answered(&mut replica, Code::Ok, &[3_000, 3_200, 3_400, 5_600]);
            replica.pending = Some(42);
            replica.numaflow_version = Some("v1.4.5".to_owned());
            snapshot.replicas.push(replica);
        }
        let text = rendered(snapshot);
        let docs = include_str!("../../../docs/install.md");
        assert!(docs.contains(&format!("```\n{text}```\n")), "{text}");
    }

    #[test]
    fn versions_of_numaflow_are_told_apart() {
        let mut snapshot = fake::three();
        snapshot.replicas[0].numaflow_version = Some("v1.4.6".to_owned());
        snapshot.replicas[1].numaflow_version = Some("v1.4.5\u{1b}".to_owned());
        let text = rendered(snapshot);
        let lines: Vec<_> = text.lines().collect();
        let first = lines
            .iter()
            .position(|line| *line == "payments/orders (MonoVertex), mode audit");
        let first = first.expect("the one without a version");
        let starts = [
            " unknown ",
            "payments/orders (MonoVertex), mode audit, Numaflow v1.4.5\u{fffd}",
            "       1 ",
            "payments/orders (MonoVertex), mode audit, Numaflow v1.4.6",
            "       0 ",
        ];
        let shown = &lines[first + 1..][..starts.len()];
        for (line, start) in shown.iter().zip(starts) {
            assert!(line.starts_with(start), "{start}: {text}");
        }
    }

    #[test]
    fn maps_that_are_nearly_full_are_a_warning() {
        let mut snapshot = fake::empty();
        let map = |name, entries, max_entries| Fill {
            name,
            entries,
            max_entries,
        };
        snapshot.maps = vec![map("A", 80, 100), map("B", 807, 1000), map("C", 0, 0)];
        let text = rendered(snapshot.clone());
        assert!(
            text.contains("warning: map B is 80 % full (807 of 1000 entries)\n"),
            "{text}"
        );
        assert!(!text.contains("map A") && !text.contains("map C"), "{text}");
        let json = serde_json::to_value(report(snapshot)).unwrap();
        assert_eq!(
            json["maps"][0],
            serde_json::json!({"name": "A", "entries": 80, "max_entries": 100})
        );
        assert_eq!(json["maps"][2]["name"], "C");
    }

    /// Everything in an hour, so that rates are counts.
    fn hour(snapshot: &mut Snapshot) {
        for replica in &mut snapshot.replicas {
            replica.since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_125 - 3_600);
        }
    }

    #[test]
    fn savings_are_reckoned_from_what_was_measured() {
        let mut snapshot = fake::three();
        hour(&mut snapshot);
        let mut second = fake::replica(Number::Number(2), 12);
        second.since = snapshot.replicas[0].since + Duration::from_secs(1_800);
        second.calls.insert((0, Verdict::Rejected), 30);
        second.mode = Mode::Enforce;
        snapshot.replicas.push(second);
        // Neither of the two lets anybody know what an hour of it would be.
        let mut gone = fake::replica(Number::Number(3), 1_000);
        gone.gone = Some(SystemTime::UNIX_EPOCH);
        let mut new = fake::replica(Number::Number(4), 1_000);
        new.since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_124);
        let mut ahead = new.clone();
        ahead.since += Duration::from_secs(100_000);
        snapshot.replicas.extend([gone, new, ahead]);
        let mut other = fake::replica(Number::Number(0), 5);
        other.identity.workload = "zeros".to_owned();
        snapshot.replicas.push(other);
        let json = serde_json::to_value(report(snapshot.clone())).unwrap();
        let expected = serde_json::json!([
            {
                "namespace": "payments", "kind": "MonoVertex", "workload": "orders", "vertex": "",
                "would_save": {"calls_per_hour": 8.0, "source_seconds_per_hour": null},
                "saves": {"calls_per_hour": 84.0, "source_seconds_per_hour": null},
            },
            {
                "namespace": "payments", "kind": "MonoVertex", "workload": "zeros", "vertex": "",
                "would_save": null, "saves": null,
            },
        ]);
        assert_eq!(json["savings"], expected, "without a duration no time");
        // What ends otherwise doesn't count, nor does another workload's.
        answered(&mut snapshot.replicas[0], Code::Ok, &[250_000, 750_000]);
        answered(&mut snapshot.replicas[1], Code::Unimplemented, &[100; 9]);
        answered(snapshot.replicas.last_mut().unwrap(), Code::Ok, &[9; 9]);
        let report = report(snapshot);
        let [orders, _] = &report.savings[..] else {
            panic!("two")
        };
        let seconds = |saving: Option<super::super::savings::Saving>| {
            saving.and_then(|saving| saving.source_seconds_per_hour)
        };
        assert_eq!(seconds(orders.would_save), Some(4.0));
        assert_eq!(seconds(orders.saves), Some(42.0));
        let mut text = String::new();
        render(&report, &mut text).unwrap();
        assert!(
            text.ends_with(
                "\nwould save   payments/orders: 8.0 calls an hour, 4.00s of the source's time\n\
                 saves        payments/orders: 84 calls an hour, 42.0s of the source's time\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("\n         ended UNIMPLEMENTED 9\n"),
            "{text}"
        );
    }

    #[test]
    fn names_from_pods_cant_touch_the_terminal() {
        let mut snapshot = fake::three();
        snapshot.replicas[0].identity.pod = "a\u{1b}[2J".to_owned();
        snapshot.replicas[0].identity.workload = "b\nc".to_owned();
        snapshot.warnings.push("\u{7}".to_owned());
        let text = rendered(snapshot);
        assert!(
            !text.chars().any(|c| c.is_control() && c != '\n'),
            "{text:?}"
        );
        assert!(text.contains("b\u{fffd}c"), "{text}");
    }

    #[test]
    fn everything_is_in_the_json() {
        let mut snapshot = fake::three();
        snapshot.replicas[1].gone = Some(SystemTime::UNIX_EPOCH);
        snapshot.replicas[1].pending = Some(7);
        answered(&mut snapshot.replicas[1], Code::Ok, &[1_000, 5_000]);
        let json = serde_json::to_value(report(snapshot)).unwrap();
        assert_eq!(json["agent"]["pid"], 42);
        assert_eq!(json["agent"]["uptime_seconds"], 125);
        assert_eq!(json["agent"]["started"], "2023-11-14T22:13:20Z");
        assert_eq!(json["ready"], true);
        assert_eq!(
            (&json["mode"], &json["tap"]),
            (&"audit".into(), &"tracepoint".into())
        );
        assert_eq!(
            (&json["enforcer"], &json["enforcer_reason"]),
            (&"none".into(), &"not tried".into())
        );
        assert_eq!(json["overrides"], serde_json::json!([]));
        assert_eq!(json["methods"][0], fake::PENDING);
        assert_eq!(json["programs"][0]["attached"], true);
        assert_eq!(json["programs"][1]["error"], "no such tracepoint");
        assert_eq!(json["unparsed"]["tls"], 0);
        assert_eq!(json["events_lost"], 0);
        assert_eq!(json["connections"]["synced"], 2);
        let replica = &json["replicas"][1];
        assert_eq!(replica["replica"], 1);
        assert_eq!(replica["pods"], serde_json::Value::Null);
        assert_eq!(replica["pod"], "orders-mv-1-abcde");
        assert_eq!(replica["gone"], "1970-01-01T00:00:00Z");
        assert_eq!(replica["calls"][0]["verdict"], "would_reject");
        assert_eq!(replica["calls"][0]["count"], 8);
        assert_eq!(json["replicas"][2]["replica"], serde_json::Value::Null);
        assert_eq!(json["answers"], true);
        assert_eq!(json["maps"][0]["name"], "TARGETS");
        assert_eq!(json["savings"][0]["workload"], "orders");
        assert_eq!(replica["pending"], 7);
        assert_eq!(replica["durations"][0]["method"], fake::PENDING);
        assert_eq!(replica["durations"][0]["code"], "OK");
        assert_eq!(replica["durations"][0]["count"], 2);
        assert_eq!(replica["durations"][0]["mean_seconds"], 0.003);
        for quantile in ["p50_seconds", "p99_seconds"] {
            let seconds = replica["durations"][0][quantile].as_f64().unwrap();
            assert!((0.001..0.006).contains(&seconds), "{quantile} {seconds}");
        }
    }
}
