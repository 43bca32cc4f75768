//! The binary as a script sees it: exit statuses, and what is named where something is wrong. None of these reaches the
//! tap, so none needs a privilege.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pendguard::api::About;
use pendguard::api::server::serve;
use pendguard::api::socket::ApiSocket;
use pendguard::engine::{Engine, Handle, ModeChanged, ModeRefused};
use pendguard::model::{Identity, Kind, Replica, Snapshot, Verdict};
use pendguard::policy::ModeChange;
use pendguard::watch::{Call, Event, Hub, Subscription};
use rustix::process::{Pid, Signal};
use tokio_util::sync::CancellationToken;

fn pendguard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pendguard"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("PENDGUARD_") || name_text == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

struct Ran {
    status: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Ran {
        status: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// As an init container does, and whoever installs profiles otherwise.
#[test]
fn the_seccomp_profile() {
    let printed = run(&mut pendguard(&["seccomp"]));
    assert_eq!((printed.status, &*printed.err), (0, ""));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let installed = run(&mut pendguard(&["seccomp", "--install", path]));
    assert_eq!(installed.status, 0, "{}", installed.err);
    let file = directory.path().join("pendguard.json");
    assert_eq!(std::fs::read_to_string(file).unwrap(), printed.out);
    let nowhere = run(&mut pendguard(&["seccomp", "--install", "/nowhere/at/all"]));
    assert_eq!(nowhere.status, 1);
    assert!(
        nowhere.err.contains("/nowhere/at/all/pendguard.json"),
        "{}",
        nowhere.err
    );
}

/// Where nothing is pinned, waiting is over at once; staying ends with a signal, and well.
#[test]
fn detaching_where_nothing_is_pinned() {
    let directory = tempfile::tempdir().unwrap();
    let pins = directory.path().join("none");
    let pins = pins.to_str().unwrap();
    let waited = run(&mut pendguard(&["detach", "--wait", "--pin-dir", pins]));
    assert_eq!(waited.status, 0, "{}", waited.err);
    assert_eq!(waited.out, format!("nothing is pinned in {pins}\n"));
    let mut stays = pendguard(&["detach", "--stay", "--pin-dir", pins])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(stays.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, waited.out);
    assert!(stays.try_wait().unwrap().is_none(), "it stays");
    let pid = Pid::from_raw(stays.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(stays.wait().unwrap().code(), Some(0));
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["status", "--help"],
        &["doctor", "-h"],
        &["mode", "--help"],
        &["top", "--help"],
        &["watch", "--help"],
        &["detach", "--help"],
        &["seccomp", "--help"],
    ] {
        let ran = run(&mut pendguard(arguments));
        assert_eq!(ran.status, 0, "{arguments:?}: {}", ran.err);
        assert!(ran.out.contains("pendguard"), "{arguments:?}: {}", ran.out);
        assert_eq!(ran.err, "");
    }
    let help = run(&mut pendguard(&["run", "--help"])).out;
    for text in [
        "--mode",
        "PENDGUARD_MODE",
        "127.0.0.1:9470",
        "/run/pendguard/api.sock",
        "[default: audit]",
        "tracepoint",
        "--enforcer",
        "--answer",
        "/sys/fs/bpf/pendguard",
        "PENDGUARD_LEASE",
        "PENDGUARD_DISCOVER",
        "- kube:",
        "NODE_NAME",
    ] {
        assert!(help.contains(text), "{text}: {help}");
    }
    assert!(help.contains("quiet"), "{help}");
}

#[test]
fn bad_flags_are_64_and_named() {
    for (arguments, named) in [
        (&[][..], "Usage"),
        (&["tops"], "tops"),
        (&["top", "--interval", "100ms"], "shorter than 200ms"),
        (&["top", "--json"], "--json"),
        (&["watch", "--replica", "one"], "--replica"),
        (&["watch", "--verdict", "loud"], "--verdict"),
        (&["watch", "--namespace", "a["], "--namespace"),
        (&["watch", "--workload", ""], "--workload"),
        (&["run", "--nothing"], "--nothing"),
        (&["run", "--mode", "loud"], "--mode"),
        (&["run", "--answer", "loud"], "--answer"),
        (&["run", "--tap", "kprobe"], "--tap"),
        (&["run", "--lease", "1s"], "shorter than 10s"),
        (&["run", "--lease", "8d"], "longer than 7d"),
        (&["run", "--pin-dir", "here"], "--pin-dir"),
        (&["run", "--discover", "kube"], "--discover kube"),
        (
            &["run", "--metrics-listen", "localhost:1"],
            "--metrics-listen",
        ),
        (
            &["run", "--config", "/nonexistent.toml"],
            "/nonexistent.toml",
        ),
        (&["status", "--api-socket", ""], "--api-socket"),
        (&["mode"], "<MODE>"),
        (&["mode", "loud"], "loud"),
        (&["mode", "enforce", "--answer", "loud"], "--answer"),
        (&["mode", "off", "--namespace", "a["], "--namespace"),
        (&["mode", "off", "--pod", ""], "--pod"),
    ] {
        let ran = run(&mut pendguard(arguments));
        assert_eq!(ran.status, 64, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(named), "{arguments:?}: {}", ran.err);
        assert_eq!(ran.out, "");
    }
}

#[test]
fn bad_variables_are_64_and_named() {
    for (name, value, named) in [
        (
            "PENDGUARD_MODE",
            "loud",
            "environment variable PENDGUARD_MODE",
        ),
        ("PENDGUARD_MODE", "", "environment variable PENDGUARD_MODE"),
        (
            "PENDGUARD_ANSWER",
            "loud",
            "environment variable PENDGUARD_ANSWER",
        ),
        (
            "PENDGUARD_TAP",
            "kprobe",
            "environment variable PENDGUARD_TAP",
        ),
        (
            "PENDGUARD_LEASE",
            "soon",
            "environment variable PENDGUARD_LEASE",
        ),
        (
            "PENDGUARD_ENFORCER",
            "tap",
            "environment variable PENDGUARD_ENFORCER",
        ),
        (
            "PENDGUARD_PIN_DIR",
            "",
            "environment variable PENDGUARD_PIN_DIR",
        ),
        ("PENDGUARD_DISCOVER", "kube", "PENDGUARD_DISCOVER=kube"),
        (
            "PENDGUARD_METRICS_LISTEN",
            "9470",
            "environment variable PENDGUARD_METRICS_LISTEN",
        ),
        (
            "PENDGUARD_API_SOCKET",
            "",
            "environment variable PENDGUARD_API_SOCKET",
        ),
        ("PENDGUARD_CONFIG", "/nonexistent.toml", "/nonexistent.toml"),
        (
            "PENDGUARD_LOG_FORMAT",
            "xml",
            "environment variable PENDGUARD_LOG_FORMAT",
        ),
        ("RUST_LOG", "pendguard=loud", "RUST_LOG"),
    ] {
        let ran = run(pendguard(&["run"]).env(name, value));
        assert_eq!(ran.status, 64, "{name}={value}: {}", ran.err);
        assert!(ran.err.contains(named), "{name}={value}: {}", ran.err);
    }
}

#[test]
fn a_flag_wins_over_its_variable() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let ran = run(
        pendguard(&["run", "--mode", "audit", "--metrics-listen", &address])
            .env("PENDGUARD_MODE", "loud")
            .env("PENDGUARD_API_SOCKET", &socket),
    );
    // Not 64: it went on, to the port that is in use.
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains(&address), "{}", ran.err);
    assert!(ran.err.contains("--metrics-listen"), "{}", ran.err);
    assert_eq!(ran.err.matches("in use").count(), 1, "{}", ran.err);
    assert!(!socket.exists());
}

#[test]
fn mistakes_in_the_file_are_64_with_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.toml");
    let config = path.to_str().unwrap();
    std::fs::write(
        &path,
        "mode = \"audit\"\nmoed = \"off\"\nmethods = [\"x\"]\n",
    )
    .unwrap();
    let ran = run(&mut pendguard(&["run", "--config", config]));
    assert_eq!(ran.status, 64);
    for named in [
        format!("pendguard: {config}:2: moed: "),
        format!("pendguard: {config}:3: methods[0]: "),
    ] {
        assert!(ran.err.contains(&named), "{}", ran.err);
    }
    let methods = "methods = [\"/source.v1.Source/AckFn\"]\nmode = \"enforce\"\n";
    std::fs::write(&path, methods).unwrap();
    let ran = run(&mut pendguard(&["run", "--config", config]));
    assert_eq!(ran.status, 64);
    for named in [
        format!("{config}:1: methods[0]: "),
        format!("{config}:2: mode"),
    ] {
        assert!(ran.err.contains(&named), "{}", ran.err);
    }
}

#[test]
fn the_log_can_be_json() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let ran = run(
        pendguard(&["run", "--log-format", "json", "--metrics-listen", &address])
            .arg("--api-socket")
            .arg(&socket)
            .env("PENDGUARD_MOED", "off"),
    );
    assert_eq!(ran.status, 1);
    let lines: Vec<serde_json::Value> = ran
        .err
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert_eq!(lines[0]["message"], "pendguard starts");
    assert_eq!(lines[0]["mode"], "audit");
    assert!(
        lines[1]["message"]
            .as_str()
            .unwrap()
            .contains("PENDGUARD_MOED")
    );
    assert_eq!(lines.last().unwrap()["level"], "ERROR");
}

#[test]
fn without_an_agent_asking_is_1_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["watch"],
        &["watch", "--json", "--replica", "1"],
        &["mode", "off"],
        &["mode", "enforce", "--namespace", "a", "--json"],
    ] {
        let ran = run(pendguard(arguments).arg("--api-socket").arg(&socket));
        assert_eq!((ran.status, &*ran.out), (1, ""));
        assert!(ran.err.contains(socket.to_str().unwrap()), "{}", ran.err);
        assert!(ran.err.contains("pendguard run"), "{}", ran.err);
    }
}

#[test]
fn top_wants_a_terminal() {
    let ran = run(&mut pendguard(&["top"]));
    assert_eq!((ran.status, &*ran.out), (1, ""));
    assert!(ran.err.contains("pendguard status"), "{}", ran.err);
}

/// An agent that sees nothing, and tells what it is told to tell.
struct Agent {
    hub: Arc<Hub>,
    stop: CancellationToken,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

struct Blind(Arc<Hub>);

impl Engine for Blind {
    fn snapshot(&self) -> Snapshot {
        unreachable!("nobody asks")
    }
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn set_mode(&self, _: ModeChange) -> Result<ModeChanged, ModeRefused> {
        Ok(ModeChanged::default())
    }
    fn watch(&self) -> Subscription {
        self.0.subscribe()
    }
}

impl Agent {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let hub = Hub::new();
        let stop = CancellationToken::new();
        let (engine, stopped, path) = (Blind(Arc::clone(&hub)), stop.clone(), socket.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let socket = ApiSocket::bind(&path).await.unwrap();
                let handle = Handle::new(Arc::new(engine));
                serve(socket, handle, About::now(), stopped).await.unwrap();
            });
        });
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            hub,
            stop,
            socket,
            _directory: directory,
        }
    }

    /// `pendguard watch`, as soon as it watches.
    fn watched(&self, arguments: &[&str]) -> Child {
        let child = pendguard(&["watch"])
            .args(arguments)
            .arg("--api-socket")
            .arg(&self.socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.until(1);
        child
    }

    fn until(&self, watchers: usize) {
        let started = Instant::now();
        while self.hub.watchers() != watchers {
            assert!(started.elapsed() < Duration::from_secs(30), "not in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn call(&self, replica: u32) {
        let identity = Identity {
            namespace: "payments".to_owned(),
            kind: Kind::MonoVertex,
            workload: "orders".to_owned(),
            vertex: String::new(),
            pod: format!("orders-mv-{replica}-abcde"),
            replica: Replica::Number(replica),
        };
        self.hub.tell(Event::Call(Arc::new(Call {
            at: SystemTime::UNIX_EPOCH,
            identity: Arc::new(identity),
            method: "/source.v1.Source/PendingFn".into(),
            verdict: Verdict::Admitted,
            code: None,
            duration: None,
            pending: None,
            pid: 1,
            fd: 2,
            stream: 3,
        })));
    }
}

fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn watch_tells_calls_until_the_agent_ends() {
    let agent = Agent::start();
    let child = agent.watched(&["--json", "--replica", "1"]);
    agent.call(0);
    agent.call(1);
    agent.hub.tell(Event::Lost(5));
    agent.stop.cancel();
    let ran = ended(child);
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("has gone"), "{}", ran.err);
    // What was told just before the end may be cut off by it.
    for line in ran.out.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(line["replica"] == 1 || line["lost"] == 5, "{line}");
    }
}

#[test]
fn watch_ends_well_when_it_is_interrupted() {
    let agent = Agent::start();
    let mut child = agent.watched(&[]);
    agent.call(7);
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert!(
        line.starts_with("00:00:00.000Z  payments/orders "),
        "{line}"
    );
    assert!(line.ends_with("  1:2/3\n"), "{line}");
    let pid = Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let ran = ended(child);
    assert_eq!((ran.status, &*ran.err), (0, ""));
    agent.until(0);
}

#[test]
fn watch_ends_well_at_once_when_nobody_reads() {
    let agent = Agent::start();
    let mut child = agent.watched(&[]);
    // No call comes that could not be written.
    drop(child.stdout.take());
    let ran = ended(child);
    assert_eq!((ran.status, &*ran.err), (0, ""));
    agent.until(0);
}

#[test]
fn doctor_answers_everywhere() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let json = run(pendguard(&["doctor", "--json", "--api-socket"]).arg(&socket));
    let report: serde_json::Value = serde_json::from_str(&json.out).expect(&json.out);
    assert!([0, 1, 2].contains(&json.status), "{}", json.out);
    assert_eq!(report["exit_status"], json.status);
    assert_eq!(
        report["enforcement"]["outcome"] == "supported",
        json.status == 0
    );
    assert_eq!(report["enforcer"].is_string(), json.status == 0);
    assert_eq!(report["agent"]["running"], false);
    let people = run(pendguard(&["doctor", "--api-socket"]).arg(&socket));
    assert_eq!(people.status, json.status);
    // At most one of two enforcers is used; of the others it is said why.
    assert!(
        people.out.contains("not used     enforcer "),
        "{}",
        people.out
    );
}
