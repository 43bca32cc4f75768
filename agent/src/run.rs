//! `pendguard run`: bind, observe, serve, drain.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::announce::{self, Announcer};
use crate::api::server::ServeError;
use crate::api::socket::{ApiSocket, SocketError};
use crate::api::{self, About};
use crate::discovery::kube::Kube;
use crate::discovery::kube::reflect::Timing;
use crate::enforce::{Enforcement, Plan};
use crate::engine::{self, Engine, Handle};
use crate::export::Source;
use crate::export::http::{self, ListenError};
use crate::export::otlp::{self, Exporter};
use crate::host::checks::{self, is_initial_pid_namespace};
use crate::host::facts::{self, Known};
use crate::observer::Observer;
use crate::settings::{Discovery, Settings};
use crate::tap::{Sights, Tap};

/// How long answers that are under way may take once the agent was told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a hanging engine can hold up the end.
const ABANDON: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to stop.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    ensure_pid_namespace(facts::pid_namespace())?;
    // One thread for the observer, this one, and one for whoever asks: the agent is woken by scrapes and by processes that come and go, never
    // by calls. While the observer looks around, or loads programs, `/healthz` is answered all the same.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .max_blocking_threads(engine::CALLERS + 1 + otlp::RESOLVERS + 1)
        .build()
        .context("can't start the asynchronous runtime")?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::install()?;
        // Before anything is attached: an agent that can't be asked must not observe.
        let bound = Bound::new(settings).await?;
        let plan = Plan {
            pin_dir: settings.pin_dir.clone(),
            lease: settings.lease,
            sights: Sights {
                methods: settings.methods.clone(),
                answers: settings.answers,
            },
            tap: settings.tap,
            enforcer: settings.enforcer,
        };
        let enforces = settings.policy.enforces();
        let start = move || start(plan, enforces);
        let (enforcement, tap) = tokio::task::spawn_blocking(start)
            .await
            .context("the tap's thread")??;
        let methods = settings.methods.clone();
        let policy = settings.policy.clone();
        let mut discovered = Discovered::begin(&settings.discovery);
        let kube = discovered.kube.clone();
        let observer = Observer::new(tap, methods, policy, enforcement, kube);
        observer.warn(discovered.warning.take());
        let engine: Arc<dyn Engine> = Arc::clone(&observer) as _;
        if settings.kube_events {
            discovered.announce(&settings.discovery, Handle::new(Arc::clone(&engine)));
        }
        let served = tokio::spawn(serve(engine, bound, settings.otlp.clone(), shutdown.wait()));
        // `/readyz` says when the observer has looked around.
        tokio::select! {
            result = observer.run() => result.context("following the processes of the node")?,
            result = served => result.context("the servers")??,
        }
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(ABANDON);
    result
}

/// Why the agent doesn't start where it would see no process by the number that its programs see.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not the machine's own pid namespace, but pid:[{inode}]. {}",
    checks::PID_NAMESPACE
)]
struct NotInitial {
    inode: u64,
}

/// An agent that counts nothing must not look like one that has nothing to count.
fn ensure_pid_namespace(found: Known<u64>) -> Result<(), NotInitial> {
    match found {
        Ok(inode) if !is_initial_pid_namespace(inode) => Err(NotInitial { inode }),
        Ok(_) => Ok(()),
        Err(reason) => {
            warn!("can't tell whether this is the machine's own pid namespace: {reason}");
            Ok(())
        }
    }
}

/// What discovery is at work with, as long as it lives.
struct Discovered {
    kube: Option<Arc<Kube>>,
    warning: Option<String>,
    watches: JoinSet<()>,
}

impl Discovered {
    fn begin(discovery: &Discovery) -> Self {
        match discovery {
            Discovery::Proc(warning) => Self {
                kube: None,
                warning: warning.clone(),
                watches: JoinSet::new(),
            },
            Discovery::Kube { access, node } => {
                info!(node, "asking the API server about the pods of this node");
                let kube = Kube::new();
                Self {
                    watches: kube.follow(access, node, Timing::default()),
                    kube: Some(kube),
                    warning: None,
                }
            }
        }
    }

    /// From now on, pods whose calls are rejected get an event.
    fn announce(&mut self, discovery: &Discovery, engine: Handle) {
        let (Discovery::Kube { access, node }, Some(kube)) = (discovery, &self.kube) else {
            info!("no events: the API server is not asked, so there is nobody to take them");
            return;
        };
        let announcer = Announcer::new(access.clone(), Arc::clone(kube), engine, node.clone());
        self.watches.spawn(announcer.run(announce::INTERVAL));
    }
}

/// Why the agent doesn't start where it can't do what it was told: nobody who asks for enforcement gets less without noticing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "mode enforce is configured, and this node can't enforce: {0}; `pendguard doctor` says more, and mode audit needs none of it"
)]
struct NoEnforcer(String);

/// Makes the tap, or takes over what is pinned; and sets enforcement up where the configuration asks for it.
fn start(plan: Plan, enforces: bool) -> anyhow::Result<(Enforcement, Tap)> {
    let (mut enforcement, mut tap) = Enforcement::begin(plan)?;
    if enforces {
        enforcement
            .enforce(&mut tap)
            .map_err(|e| NoEnforcer(crate::errors::chain(&e)))?;
    }
    Ok((enforcement, tap))
}

/// What the agent is asked through, taken but not yet served.
pub struct Bound {
    metrics: TcpListener,
    /// Where the metrics really are: the port may have been 0.
    pub metrics_address: SocketAddr,
    api: ApiSocket,
}

/// Why the agent can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address of the metrics.
    #[error(transparent)]
    Metrics(#[from] ListenError),
    /// The API's socket.
    #[error(transparent)]
    Api(#[from] SocketError),
    /// The listener has no address.
    #[error("the metrics' listener: {0}")]
    Address(#[from] std::io::Error),
}

impl Bound {
    /// Takes the address of the metrics and the API's socket.
    pub async fn new(settings: &Settings) -> Result<Self, BindError> {
        // The socket first: of two agents on a node, it is the one that names the other.
        let api = ApiSocket::bind(&settings.api_socket).await?;
        let metrics = http::listen(settings.metrics_listen).await?;
        Ok(Self {
            metrics_address: metrics.local_addr()?,
            metrics,
            api,
        })
    }
}

/// Serves metrics and API, and sends metrics where they are wanted, until `shutdown`, then lets the answers that are under way end. The engine is dropped last.
pub async fn serve(
    engine: Arc<dyn Engine>,
    bound: Bound,
    otlp: Option<otlp::Target>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    info!(metrics = %bound.metrics_address, "serving");
    let stop = CancellationToken::new();
    // However this ends, what the servers have spawned ends too.
    let _end = stop.clone().drop_guard();
    let handle = Handle::new(Arc::clone(&engine));
    let mut source = Source::new(handle.clone());
    let exporter = otlp.map(|target| Exporter::new(target, &mut source));
    let metrics = http::serve(bound.metrics, source, stop.clone());
    let api = api::server::serve(bound.api, handle, About::now(), stop.clone());
    let metrics = async {
        metrics.await;
        Ok(())
    };
    let sending = async {
        if let Some(exporter) = exporter {
            exporter.run(stop.clone()).await;
        }
        Ok(())
    };
    // The first failure ends all.
    let mut servers = std::pin::pin!(async { tokio::try_join!(metrics, api, sending).map(drop) });
    let early = tokio::select! {
        result = &mut servers => Some(result),
        () = shutdown => None,
    };
    let result = match early {
        // Servers don't end by themselves but by failing.
        Some(result) => result,
        None => {
            stop.cancel();
            match tokio::time::timeout(DRAIN, servers).await {
                Ok(result) => result,
                Err(_) => {
                    warn!(
                        "some clients are still connected after {} s: dropped",
                        DRAIN.as_secs()
                    );
                    Ok(())
                }
            }
        }
    };
    drop(engine);
    result
}

/// SIGTERM and SIGINT.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// From now on, neither ends the process by itself.
    pub fn install() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("can't wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("can't wait for SIGINT")?,
        })
    }

    /// Until one of them comes.
    pub async fn wait(mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "stopping");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;
    use crate::api::client;
    use crate::cli;
    use crate::engine::fake::{self, Fake};
    use crate::model::Mode;
    use crate::policy::Policy;
    use crate::settings::DEFAULT_METHOD;

    fn settings(directory: &Path) -> Settings {
        Settings {
            policy: Policy::new(Mode::Audit),
            methods: vec![DEFAULT_METHOD.to_owned()],
            answers: true,
            kube_events: false,
            discovery: Discovery::Proc(None),
            tap: cli::Tap::Auto,
            enforcer: cli::Enforcer::Auto,
            pin_dir: directory.join("bpf"),
            lease: Duration::from_secs(3600),
            metrics_listen: "127.0.0.1:0".parse().unwrap(),
            api_socket: directory.join("api.sock"),
            otlp: None,
            config: None,
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        let refused = NoEnforcer("no bpffs".to_owned()).to_string();
        for text in ["enforce", "no bpffs", "pendguard doctor", "audit"] {
            assert!(refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn another_pid_namespace_is_refused_and_what_to_do_is_said() {
        assert_eq!(ensure_pid_namespace(Ok(0xeffffffc)), Ok(()));
        assert_eq!(ensure_pid_namespace(Err("no /proc".to_owned())), Ok(()));
        let refused = ensure_pid_namespace(Ok(4_026_532_000))
            .unwrap_err()
            .to_string();
        for text in [
            "pid:[4026532000]",
            "hostPID: true",
            "kind",
            "--discover proc",
        ] {
            assert!(refused.contains(text), "{refused}");
        }
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_serves_until_told_to_stop_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        let bound = Bound::new(&settings).await.unwrap();
        let address = bound.metrics_address;
        let (stop, stopped) = oneshot::channel::<()>();
        let engine = Fake::new(fake::three());
        let alive = Arc::downgrade(&engine);
        let served = tokio::spawn(serve(engine, bound, settings.otlp.clone(), async {
            let _ = stopped.await;
        }));
        assert!(
            get(address, "/metrics")
                .await
                .contains("pendguard_calls_total{")
        );
        let report = client::fetch(&settings.api_socket).await.unwrap();
        assert_eq!(report.status.pid, std::process::id());
        // Connected, and never saying anything: it must not hold up the end.
        let _silent = TcpStream::connect(address).await.unwrap();
        stop.send(()).unwrap();
        tokio::time::timeout(DRAIN + Duration::from_secs(5), served)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(!settings.api_socket.exists());
        assert!(TcpStream::connect(address).await.is_err());
        // The engine is given back, so the tap is detached with it.
        assert_eq!(alive.strong_count(), 0);
    }

    #[tokio::test]
    async fn a_second_agent_is_refused_and_a_failed_one_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings(directory.path());
        let first = Bound::new(&settings).await.unwrap();
        let second = Bound::new(&settings).await.err().unwrap().to_string();
        assert!(
            second.contains(&format!("pid {}", std::process::id())),
            "{second}"
        );
        settings.metrics_listen = first.metrics_address;
        settings.api_socket = directory.path().join("other.sock");
        let port = Bound::new(&settings).await.err().unwrap().to_string();
        assert!(port.contains(&first.metrics_address.to_string()), "{port}");
        assert!(!settings.api_socket.exists());
    }
}
