//! `pendguard status`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use comfy_table::CellAlignment;

use super::report::{ADMITTED, REJECTED, Replica, Report, WOULD_REJECT};
use super::{block_on, clean, complain, duration, print, table};
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

/// The report for people, made to fit into 80 columns as long as names are short.
fn render(report: &Report, out: &mut String) -> fmt::Result {
    head(report, out)?;
    if report.replicas.is_empty() {
        return writeln!(out, "\nno source replica on this node");
    }
    replicas(&report.replicas, out)
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
    reasons(out, "unparsed     ", &report.unparsed)?;
    reasons(out, "not rejected ", &report.enforcement_failures)?;
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
    for warning in &report.warnings {
        writeln!(out, "warning: {}", clean(warning))?;
    }
    Ok(())
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

/// What replicas that are shown together have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    namespace: &'a str,
    workload: &'a str,
    vertex: &'a str,
    kind: &'a str,
    mode: &'a str,
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", clean(self.namespace), clean(self.workload))?;
        if !self.vertex.is_empty() {
            write!(f, "/{}", clean(self.vertex))?;
        }
        write!(f, " ({}), mode {}", self.kind, self.mode)
    }
}

const HEADER: [&str; 7] = [
    "REPLICA",
    "ADMITTED",
    "WOULD_REJECT",
    "REJECTED",
    "UNRESOLVED",
    "CONNS",
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
        };
        groups.entry(group).or_default().push(replica);
    }
    // One table, so that all groups have the same columns; then their headings in between its lines.
    let mut table = table();
    table.set_header(HEADER);
    for column in table.column_iter_mut().take(HEADER.len() - 1) {
        column.set_cell_alignment(CellAlignment::Right);
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
        for line in lines.by_ref().take(members.len()) {
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(())
}

fn row(replica: &Replica) -> [String; 7] {
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
    use crate::model::{Kind, Mode, ModeOverride, Replica as Number, Snapshot, Verdict};
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

 REPLICA  ADMITTED  WOULD_REJECT  REJECTED  UNRESOLVED  CONNS  POD
payments/orders (MonoVertex), mode audit
       0         9             0         0           0      1  orders-mv-0-abcde
       1         0             8         0           0      1  orders-mv-1-abcde
 unknown         7             0         0           0      1  orders-mv-unknown-abcde
payments/orders/in (Pipeline), mode off
      10         0        123456         0           3      1  orders-mv-10-abcde (gone)
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
        let mut snapshot = fake::empty();
        snapshot.events_lost = 2;
        snapshot.unparsed = vec![(agent_common::abi::Reason::Tls, 3)];
        let text = rendered(snapshot);
        assert!(
            text.contains("unparsed     tls 3\nevents lost  2\n"),
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
        snapshot.replicas[1].latched = 1;
        let calls = &mut snapshot.replicas[1].calls;
        calls.insert((0, Verdict::Rejected), 77);
        let set = |mode, namespace: Option<&str>, pod: Option<&str>| ModeOverride {
            mode,
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
            "at run time  mode enforce, namespace pay*\n",
            "at run time  mode audit, namespace payments, pod orders-mv-0-abcde\n",
            "at run time  mode off, pod x\u{fffd}\n",
            "not rejected candidate 3\n",
            "payments/orders (MonoVertex), mode enforce\n",
            "         8        77           0  1 (1 latched)  orders-mv-1-abcde\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("no enforcer"), "{text}");
        let json = serde_json::to_value(report(snapshot)).unwrap();
        assert_eq!(json["enforcer"], "gate");
        assert_eq!(json.get("enforcer_reason"), None);
        assert_eq!(json["enforcement_failures"]["candidate"], 3);
        assert_eq!(json["overrides"][1]["mode"], "enforce");
        assert_eq!(json["overrides"][1]["namespace"], "pay*");
        assert_eq!(json["overrides"][1]["pod"], serde_json::Value::Null);
        assert_eq!(json["connections"]["latched"], 1);
        let replica = &json["replicas"][1];
        assert_eq!(replica["mode"], "enforce");
        assert_eq!(replica["connections"]["latched"], 1);
        assert_eq!(replica["calls"][1]["verdict"], "rejected");
        assert_eq!(replica["calls"][1]["count"], 77);
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
    }
}
