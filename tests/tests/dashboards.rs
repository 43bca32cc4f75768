//! The dashboard and the rules against a real Prometheus that scrapes a real agent: no panel is empty, and no rule is wrong.

mod cluster;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster::{Cluster, NODE};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::dashboard::{LABELS, fill_in, panels};
use pendguard_tests::member::Place;
use pendguard_tests::prometheus::{Prometheus, Series, promtool, rules};
use pendguard_tests::promql::series;
use pendguard_tests::replica::Replica;
use pendguard_tests::scene::{BACKLOG, Scene, Workload};
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};

/// What rates are taken over: enough scrapes for one, and little to wait for.
const WINDOW: &str = "10s";
/// How long everything may take to have data.
const DATA_LIMIT: Duration = Duration::from_secs(60);

/// A version that asks from replica 0 only, says the tag; here all replicas ask.
const VERSION: &str = "v1.8.3";

const WORKLOADS: [Workload; 1] = [Workload {
    name: "dashboards",
    replicas: 3,
    every: Duration::from_millis(100),
}];

#[tokio::test]
async fn the_rules_do_what_they_say() -> Result<()> {
    let said = promtool(&["check", "rules"], &rules()).await?;
    ensure!(said.contains("SUCCESS"), "{said}");
    let tests = rules().with_file_name("rules_test.yaml");
    let said = promtool(&["test", "rules"], &tests).await?;
    ensure!(said.contains("SUCCESS"), "{said}");
    // Each alert has a case in which it fires.
    let tests = std::fs::read_to_string(tests)?;
    for alert in std::fs::read_to_string(rules())?
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let fires = format!(r#"labels: 'ALERTS{{alertname="{alert}",alertstate="firing""#);
        ensure!(tests.contains(&fires), "{alert} is not tested");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_asked_has_an_answer() -> Result<()> {
    // In a cluster, since some series are there only where an API server is.
    let cluster = Cluster::start()?;
    let bpffs = BpfFs::mount()?;
    let agent = cluster.agent(&bpffs, &[]).await?;
    let mut cgroups = Vec::new();
    let scene = Scene::around(agent, bpffs, &WORKLOADS, &rules(), async |name, number| {
        let Place {
            pod,
            object,
            cgroup,
        } = Place::new(NODE, name, number, VERSION)?;
        cluster.server.put("pods", object);
        let started = Replica::start_in_with_backlog(pod, number, BACKLOG);
        let replica = cgroup.within(started).await?;
        cgroups.push(cgroup);
        Ok(replica)
    })
    .await?;
    let prometheus = &scene.prometheus;
    // Of the audit, before the time of enforcement is mixed with it.
    let useless = number(prometheus, "Useless calls that reach sources").await?;
    ensure!(useless > 0.0, "{useless} useless calls");
    let rejected = number(prometheus, "Useless calls that are rejected").await?;
    ensure!(rejected == 0.0, "{rejected} of them rejected");
    scene.enforce().await?;
    wait_for(
        "the share of rejected calls grows",
        WAIT_LIMIT,
        async || {
            let share = number(prometheus, "Useless calls that are rejected").await?;
            Ok((share > 0.0).then_some(()))
        },
    )
    .await?;

    let mut missing = expressions(prometheus).await?;
    let mut why = BTreeMap::new();
    let waited = wait_for("all expressions have data", DATA_LIMIT, async || {
        for what in missing.keys().cloned().collect::<Vec<_>>() {
            let found = prometheus.query(&missing[&what]).await;
            match found {
                Ok(found) if is_data(&found) => {
                    missing.remove(&what);
                }
                found => {
                    why.insert(what, format!("{found:?}"));
                }
            }
        }
        Ok(missing.is_empty().then_some(()))
    })
    .await;
    let without: Vec<_> = missing
        .iter()
        .map(|(what, expression)| format!("{what}: {expression}\n    {}", why[what]))
        .collect();
    waited.with_context(|| without.join("\n"))?;

    for label in LABELS {
        let selector = fill_in(label.series, WINDOW);
        let values = prometheus.label_values(&selector, label.name).await?;
        ensure!(!values.is_empty(), "no choice of {}", label.title);
    }
    // After so many evaluations each rule has had its turn.
    for rule in prometheus.rules().await? {
        ensure!(rule.health == "ok", "{}: {}", rule.name, rule.last_error);
    }
    scene.end().await
}

/// What has to have data, by where it comes from: the expressions of panels, recorded series, and what alerts are made from.
async fn expressions(prometheus: &Prometheus) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for panel in panels() {
        for (i, query) in panel.queries.iter().enumerate() {
            let name = format!("panel \"{}\", query {}", panel.title, i + 1);
            all.insert(name, fill_in(&query.expression(), WINDOW));
        }
    }
    for rule in prometheus.rules().await? {
        if rule.kind == "recording" {
            all.insert(format!("rule {}", rule.name), rule.query);
            continue;
        }
        // An alert that has something to say here need not; but it has to be valid, and about something.
        prometheus
            .query(&rule.query)
            .await
            .with_context(|| rule.name.clone())?;
        let about = series(&rule.query);
        ensure!(!about.is_empty(), "{} is about nothing", rule.name);
        for name in about {
            all.insert(format!("alert {}: {name}", rule.name), name.to_owned());
        }
        // This scene is what it is for: its parts meet, in whatever labels they have.
        if rule.name == "PendguardUpgradeDidNotTakeEffect" {
            all.insert(format!("alert {}", rule.name), rule.query);
        }
    }
    ensure!(all.len() > 40, "only {} expressions", all.len());
    Ok(all)
}

/// Whether there is anything to draw.
fn is_data(found: &[Series]) -> bool {
    found
        .iter()
        .flat_map(|series| &series.values)
        .any(|(_, value)| value.is_finite())
}

/// The one value of a panel, as soon as it has one.
async fn number(prometheus: &Prometheus, title: &str) -> Result<f64> {
    let panel = panels()
        .find(|panel| panel.title == title)
        .with_context(|| format!("no panel {title}"))?;
    let expression = fill_in(&panel.queries[0].expression(), WINDOW);
    wait_for(title, WAIT_LIMIT, async || {
        let found = prometheus.query(&expression).await?;
        Ok(found.first().map(|series| series.values[0].1))
    })
    .await
}
