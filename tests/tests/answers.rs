//! What the agent tells of answers: how calls end, how long they take, and what a source says is pending.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use agent_common::abi::answers::Code;
use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, PENDING, Scrape};
use pendguard_tests::peers::locate;
use pendguard_tests::peers::{
    Client, ClientKind, ClientOptions, Source, SourceKind, SourceOptions,
};
use pendguard_tests::protocol::Method;
use pendguard_tests::raw::Raw;
use pendguard_tests::replica::{Replica, client_options, source_options};
use pendguard_tests::scale::{Scale, amount};
use pendguard_tests::wait::{WAIT_LIMIT, within};
use pendguard_tests::watch::Watch;
use pendguard_tests::{agent::Pod, scale};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A method that no source has.
const MISSING: &str = "/source.v1.Source/Nothing";
/// What the sources say is pending.
const VALUE: i64 = 1_234_567_890_123;
/// Messages a second beside the calls.
const RATE: u64 = 1_000;

/// The watched methods.
fn config(directory: &TempDir) -> Result<String> {
    let path = directory.path().join("pendguard.toml");
    std::fs::write(&path, format!("methods = [{PENDING:?}, {MISSING:?}]"))?;
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

/// A pod of which the test says more than [`Replica`] does.
struct Custom {
    pod: Pod,
    source: Source,
    client: Client,
    _directory: TempDir,
}

impl Custom {
    async fn start(
        workload: &str,
        kind: ClientKind,
        source: impl FnOnce(&mut SourceOptions),
        client: impl FnOnce(&mut ClientOptions),
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let pod = Pod::mono_vertex(workload, "1");
        let mut options = source_options(&directory, SourceKind::Rust, &pod);
        source(&mut options);
        let running = Source::start(&options).await?;
        let mut options = client_options(&pod);
        client(&mut options);
        let client = Client::start(kind, &running.unix(), &options).await?;
        Ok(Self {
            pod,
            source: running,
            client,
            _directory: directory,
        })
    }
}

fn by_code<const N: usize>(codes: [(&str, u64); N]) -> BTreeMap<String, u64> {
    codes.map(|(code, n)| (code.to_owned(), n)).into()
}

/// Every call ends with the status that its client saw, and once; the value is the source's. Beside them messages are read, and
/// IsReady is called.
async fn codes_and_values(kind: ClientKind) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(&["--config", &config(&directory)?]).await?;
    let workload = format!("answers-{kind}");
    let calls = scale::calls() / 2;
    let value = |options: &mut SourceOptions| options.pending_value = Some(VALUE);
    let mut pod = Custom::start(&workload, kind, value, |_| {}).await?;
    pod.client.background_on(RATE).await?;
    let ok = pod.client.call(Method::PendingFn, calls).await?;
    ensure!(ok.statuses() == by_code([("OK", calls)]), "{ok:?}");
    ensure!(
        ok.values == by_code([(&*VALUE.to_string(), calls)]),
        "{ok:?}"
    );
    let refused = pod.client.call_path(MISSING, calls / 10).await?;
    ensure!(
        refused.statuses() == by_code([("UNIMPLEMENTED", calls / 10)]),
        "{refused:?}"
    );
    let background = pod.client.background_off().await?;
    ensure!(
        background.intact && background.errors.is_empty(),
        "{background:?}"
    );
    let scrape = agent
        .until("every call has ended", |scrape| {
            let timed = |method| -> u64 { scrape.timed(&workload, 1, method).values().sum() };
            timed(PENDING) >= calls && timed(MISSING) >= calls / 10
        })
        .await?;
    ensure!(
        scrape.timed(&workload, 1, PENDING) == by_code([("OK", calls)]),
        "{scrape:?}"
    );
    ensure!(
        scrape.timed(&workload, 1, MISSING) == by_code([("UNIMPLEMENTED", calls / 10)]),
        "{scrape:?}"
    );
    let pending = scrape.sum("pendguard_source_pending", &[("workload", &workload)]);
    ensure!(pending == Some(VALUE.unsigned_abs()), "{scrape:?}");
    let unparsed = scrape.unparsed();
    ensure!(unparsed.is_empty(), "{unparsed:?}");
    Ok(())
}

#[tokio::test]
async fn tonic_s_calls_end_as_it_sees_them() -> Result<()> {
    codes_and_values(ClientKind::Tonic).await
}

#[tokio::test]
async fn grpc_go_s_calls_end_as_it_sees_them() -> Result<()> {
    codes_and_values(ClientKind::GrpcGo).await
}

#[tokio::test]
async fn c_core_s_calls_end_as_it_sees_them() -> Result<()> {
    codes_and_values(ClientKind::GrpcCore).await
}

#[tokio::test]
async fn grpc_js_s_calls_end_as_it_sees_them() -> Result<()> {
    codes_and_values(ClientKind::GrpcJs).await
}

/// The SDKs' servers spell statuses and split messages each in its own way.
#[tokio::test]
async fn every_server_s_answers_are_understood() -> Result<()> {
    for source in [SourceKind::Python, SourceKind::Node, SourceKind::Go] {
        let agent = Agent::start(&[]).await?;
        let calls = scale::calls() / 20;
        let workload = format!("servers-{source}");
        let mut replica = Replica::start(&workload, 1, ClientKind::Tonic, source).await?;
        let called = replica.client.call(Method::PendingFn, calls).await?;
        let scrape = agent
            .until("every call has ended", |scrape| {
                scrape.timed(&workload, 1, PENDING).values().sum::<u64>() >= calls
            })
            .await?;
        ensure!(
            scrape.timed(&workload, 1, PENDING) == called.statuses(),
            "{source}: {called:?}, {scrape:?}"
        );
    }
    Ok(())
}

/// Between and within answers another call has messages, which are passed without being looked at, wherever receives end.
#[tokio::test]
async fn answers_between_messages() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let pod = Pod::mono_vertex("between", "1");
    let mut raw = Raw::start(pod.numa()).await?;
    let rounds: u64 = amount(30, 5);
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let mut all = 0;
    for seed in 0..amount(5, 1) {
        for call in ["read", "readv", "recvfrom", "recvmsg"] {
            let value: u64 = raw
                .run(&format!("interleave {call} {rounds} {seed}"))
                .await?
                .parse()?;
            // Each of gRPC's statuses, no status, a reset; and the number's.
            let ways = Code::ALL.into_iter().filter(|&code| code <= Code::Reset);
            for code in ways.chain([Code::Unknown]) {
                *expected.entry(code.name().to_owned()).or_default() += rounds;
            }
            *expected.entry(Code::Ok.name().to_owned()).or_default() += 1;
            all += 19 * rounds + 1;
            let scrape = agent
                .until("every call has ended", |scrape| {
                    scrape.timed("between", 1, PENDING).values().sum::<u64>() >= all
                })
                .await?;
            ensure!(
                scrape.timed("between", 1, PENDING) == expected,
                "{call}, {seed}: {scrape:?}"
            );
            let pending = scrape.sum("pendguard_source_pending", &[("workload", "between")]);
            ensure!(pending == Some(value), "{call}, {seed}: {scrape:?}");
            let unparsed = scrape.unparsed();
            ensure!(unparsed.is_empty(), "{call}, {seed}: {unparsed:?}");
        }
    }
    raw.end().await?;
    Ok(())
}

/// Durations are those that the client measured itself, within 5 %: call by call, and as quantiles of the histogram.
#[tokio::test]
async fn durations_are_the_client_s_own() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let calls = amount(2_000, 200);
    // A machine that is busy with something else for a moment delays what the client measures, and not what the kernel does. Each try has
    // a histogram of its own.
    let mut measured = Err(anyhow::anyhow!("not measured"));
    for workload in ["durations-1", "durations-2", "durations-3"] {
        let slow = |options: &mut SourceOptions| options.pending_delay = Some((5, 50));
        let mut pod = Custom::start(workload, ClientKind::Tonic, slow, |_| {}).await?;
        let mut watch = watch(&agent, &mut pod, workload).await?;
        measured = compare(&agent, &mut pod, &mut watch, calls).await;
        if measured.is_ok() {
            break;
        }
    }
    measured
}

async fn compare(agent: &Agent, pod: &mut Custom, watch: &mut Watch, calls: u64) -> Result<()> {
    let called = pod.client.call(Method::PendingFn, calls).await?;
    ensure!(called.statuses() == by_code([("OK", calls)]), "{called:?}");
    let (median, most) = called.quantiles.context("no quantiles")?;
    // In an emulated machine what lies between the kernel and the client's clock takes as long as a call.
    let within = match scale::scale() {
        Scale::Vm => 0.5,
        _ => 0.05,
    };
    let mut told = Vec::new();
    for _ in 0..calls {
        let call = watch.next().await?;
        told.push(call["duration_seconds"].as_f64().context("no duration")?);
    }
    told.sort_unstable_by(f64::total_cmp);
    let status = agent.status().await?;
    let mut replicas = status["replicas"].as_array().into_iter().flatten();
    let replica = replicas.find(|replica| replica["pod"] == pod.pod.name.as_str());
    let durations = &replica.context("its replica")?["durations"][0];
    ensure!(durations["code"] == "OK", "{status}");
    for (name, q, own) in [("p50_seconds", 0.5, median), ("p99_seconds", 0.99, most)] {
        let exact = told[(told.len() as f64 * q) as usize];
        ensure!(
            (exact / own - 1.0).abs() < within,
            "{name}: {exact} s, and the client measured {own} s"
        );
        let step = durations[name]
            .as_f64()
            .with_context(|| format!("{name}: {durations}"))?;
        ensure!(
            (step / own - 1.0).abs() < within,
            "{name}: {step} s in the histogram, and the client measured {own} s"
        );
    }
    Ok(())
}

/// Watches a workload's needless calls, when the first has been told.
async fn watch(agent: &Agent, pod: &mut Custom, workload: &str) -> Result<Watch> {
    let mut watch = Watch::start(
        agent,
        &["--workload", workload, "--verdict", "would_reject"],
    )?;
    watch
        .first(async || {
            pod.client.call(Method::PendingFn, 1).await?;
            Ok(())
        })
        .await?;
    Ok(watch)
}

/// Calls that end without an answer end as what they are, and each once.
#[tokio::test]
async fn what_is_given_up_or_lost_is_told() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let never = |options: &mut SourceOptions| options.pending_delay = Some((600_000, 600_000));
    // The client gives up.
    let mut pod = Custom::start("cancelled", ClientKind::Tonic, never, |options| {
        options.give_up = Some(50);
    })
    .await?;
    let called = pod.client.call(Method::PendingFn, 48).await?;
    ensure!(
        called.statuses() == by_code([("GIVEN_UP", 48)]),
        "{called:?}"
    );
    let ended = |workload: &'static str, n| {
        let agent = &agent;
        async move {
            let scrape = agent
                .until("the calls have ended", |scrape| {
                    scrape.timed(workload, 1, PENDING).values().sum::<u64>() >= n
                })
                .await?;
            anyhow::Ok(scrape.timed(workload, 1, PENDING))
        }
    };
    ensure!(ended("cancelled", 48).await? == by_code([("CANCELLED", 48)]));
    // The source dies: the client closes its end. Then the client dies: nobody closes anything.
    for (workload, of_client) in [("source-died", false), ("client-died", true)] {
        let mut pod = Custom::start(workload, ClientKind::Tonic, never, |_| {}).await?;
        pod.client.every(Duration::from_millis(1)).await?;
        agent
            .until("the call is under way", |scrape| {
                scrape.pending(&pod.pod.name, "would_reject") == 1
            })
            .await?;
        let pid = if of_client {
            pod.client.pid()
        } else {
            pod.source.pid()
        };
        kill_process(
            Pid::from_raw(pid.try_into()?).context("pid 0")?,
            Signal::KILL,
        )?;
        let codes = ended(workload, 1).await?;
        // A source that dies may still be connected to anew, and take one call more with it.
        let called = agent.scrape().await?.pending(&pod.pod.name, "would_reject");
        ensure!(
            (1..=2).contains(&called) && codes == by_code([("CONNECTION_LOST", called)]),
            "{workload}: {codes:?} of {called}"
        );
    }
    Ok(())
}

/// A line a call while somebody watches; nothing is lost.
#[tokio::test]
async fn whoever_watches_is_told_of_every_call() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let value = |options: &mut SourceOptions| options.pending_value = Some(VALUE);
    let mut pod = Custom::start("watched", ClientKind::Tonic, value, |_| {}).await?;
    let mut watch = watch(&agent, &mut pod, "watch*").await?;
    let calls = scale::calls() / 5;
    pod.client.call(Method::PendingFn, calls).await?;
    for n in 0..calls {
        let call = watch.next().await?;
        ensure!(call["method"] == PENDING, "{n}: {call}");
        ensure!(call["pod"] == pod.pod.name.as_str(), "{n}: {call}");
        ensure!(
            call["verdict"] == "would_reject" && call["code"] == "OK",
            "{n}: {call}"
        );
        ensure!(call["pending"] == VALUE, "{n}: {call}");
        let seconds = call["duration_seconds"].as_f64().context("no duration")?;
        ensure!(seconds > 0.0 && seconds < 60.0, "{n}: {call}");
    }
    let lost = agent.scrape().await?.events_lost();
    ensure!(lost == Some(0), "{lost:?}");
    Ok(())
}

/// Calls of one pod, 16 in a send, as fast as they are answered.
struct Volley {
    pod: Pod,
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Volley {
    const TOGETHER: u64 = 16;

    /// How many there are: more than a watcher's backlog, its pipe and its connection hold.
    fn calls() -> u64 {
        amount(160_000, 32_000)
    }

    async fn start(agent: &Agent, workload: &str) -> Result<Self> {
        let pod = Pod::mono_vertex(workload, "1");
        let mut process = Command::new(locate::bench()?)
            .args(["make", "answer", &Self::calls().to_string()])
            .args(["--together", &Self::TOGETHER.to_string()])
            .envs(pod.numa())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut output = BufReader::new(process.stdout.take().context("no output")?).lines();
        let pid = output.next_line().await?.context("no pid")?.parse()?;
        agent.until_watches(pid).await?;
        Ok(Self {
            pod,
            process,
            output,
        })
    }

    /// Makes the calls. Returns how many there were in a second.
    async fn fire(&mut self) -> Result<f64> {
        let mut stdin = self.process.stdin.take().context("once only")?;
        stdin.write_all(b"go\n").await?;
        let ns: f64 = within("the calls", WAIT_LIMIT, self.output.next_line())
            .await??
            .context("it failed")?
            .parse()?;
        ensure!(self.process.wait().await?.success(), "it failed");
        Ok(Self::calls() as f64 / (ns / 1e9))
    }

    /// Every call was counted, and every one of them was timed.
    async fn counted(&self, agent: &Agent, workload: &str) -> Result<()> {
        let timed = |scrape: &Scrape| scrape.timed(workload, 1, PENDING);
        let scrape = agent
            .until("every call has ended", |scrape| {
                timed(scrape).values().sum::<u64>() >= Self::calls()
            })
            .await?;
        ensure!(
            timed(&scrape) == by_code([("OK", Self::calls())])
                && scrape.pending(&self.pod.name, "would_reject") == Self::calls()
                && scrape.unparsed().is_empty(),
            "{scrape:?}"
        );
        Ok(())
    }
}

/// Calls a second at which nothing may be lost.
const FAST: f64 = 20_000.0;

/// No event is lost where nobody watches, however many calls there are.
#[tokio::test]
async fn nothing_is_lost_without_a_watcher() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let mut volley = Volley::start(&agent, "volley").await?;
    let rate = volley.fire().await?;
    volley.counted(&agent, "volley").await?;
    let lost = agent.scrape().await?.events_lost();
    ensure!(lost == Some(0), "{lost:?} at {rate:.0} calls a second");
    // An emulated machine tests that calls are accounted for, at whatever rate it makes them.
    ensure!(
        rate >= FAST || scale::scale() == Scale::Vm,
        "this machine makes no more than {rate:.0} calls a second: at {FAST} nothing was tested"
    );
    println!("0 lost at {rate:.0} calls a second");
    Ok(())
}

/// A watcher that doesn't keep up is told exactly how many calls it wasn't told of, and what is counted is the same as ever.
#[tokio::test]
async fn a_slow_watcher_is_told_what_it_missed() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let mut pod = Custom::start("slow", ClientKind::Tonic, |_| {}, |_| {}).await?;
    let mut watch = watch(&agent, &mut pod, "slow*").await?;
    let mut volley = Volley::start(&agent, "slow-volley").await?;
    // Nobody reads what `watch` prints until it's over.
    let rate = volley.fire().await?;
    volley.counted(&agent, "slow-volley").await?;
    let (mut told, mut lost) = (0, 0);
    while told + lost < Volley::calls() {
        let line = watch
            .next()
            .await
            .with_context(|| format!("{told} told, {lost} lost of {}", Volley::calls()))?;
        match line["lost"].as_u64() {
            Some(more) => lost += more,
            None if line["workload"] == "slow-volley" => told += 1,
            // One of those that `watch` made.
            None => ensure!(line["workload"] == "slow", "{line}"),
        }
    }
    ensure!(told + lost == Volley::calls(), "{told} told, {lost} lost");
    ensure!(told > 0 && lost > 0, "{told} told, {lost} lost");
    // Whoever asks the agent is told the part that the kernel lost.
    let of_kernel = agent.scrape().await?.events_lost().context("no figure")?;
    ensure!(of_kernel <= lost, "{of_kernel} of {lost}");
    println!("{told} told, {lost} lost ({of_kernel} by the kernel) at {rate:.0} calls a second");
    // The next call is told again.
    pod.client.call(Method::PendingFn, 1).await?;
    let call = watch.next().await?;
    ensure!(call["workload"] == "slow", "{call}");
    Ok(())
}

/// Without answers nothing hangs on receives, and nothing is said that isn't known.
#[tokio::test]
async fn answers_can_be_left_alone() -> Result<()> {
    let agent = Agent::start(&["--no-answers"]).await?;
    let mut replica = Replica::start("unanswered", 1, ClientKind::Tonic, SourceKind::Rust).await?;
    replica.client.call(Method::PendingFn, 100).await?;
    let scrape = agent
        .until("the calls are counted", |scrape| {
            replica.counted(scrape) == 100
        })
        .await?;
    ensure!(
        scrape.timed("unanswered", 1, PENDING).is_empty(),
        "{scrape:?}"
    );
    ensure!(scrape.unparsed().is_empty(), "{scrape:?}");
    let status = agent.status().await?;
    let programs = status["programs"].as_array().context("no programs")?;
    let hooks = programs.iter().filter_map(|p| p["name"].as_str());
    ensure!(
        !hooks.into_iter().any(|name| name.starts_with("answer")),
        "{status}"
    );
    Ok(())
}
