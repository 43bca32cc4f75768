//! A container of the image, with what the kubelet and containerd make of a pod's spec: run by crun, a runtime that clusters have, too.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::service_account::{MOUNTED, ServiceAccount};
use super::{Image, added, container, strings};
use crate::agent::Agent;
use crate::bpffs::BpfFs;

/// The pod's address: one that nobody else on this machine listens on.
const POD_IP: &str = "127.70.71.1";
/// What the API server calls the node.
pub const NODE_NAME: &str = "node-1";
/// What containerd hides from containers that are not privileged, and what it lets them read only.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];
/// crun refuses a machine that has both hierarchies of cgroups, as no cluster's has; so it doesn't see the second. A node has a tracefs, which this
/// machine may not have.
const AS_ON_A_NODE: &str = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified || exit; fi; \
     mount -t tracefs tracefs \"$1\" || exit; shift; exec \"$@\"";

/// What a node has that containers mount.
pub struct Node {
    directory: TempDir,
    bpffs: BpfFs,
    /// The configuration in the ConfigMap.
    config: String,
    /// Of the cluster's pods, if it is in one.
    service_account: Option<ServiceAccount>,
}

impl Node {
    /// A node of which nothing is known yet, and the ConfigMap's content.
    ///
    /// # Errors
    /// It takes root.
    pub fn new(config: &str) -> Result<Self> {
        let node = Self {
            directory: tempfile::tempdir()?,
            bpffs: BpfFs::mount()?,
            config: config.to_owned(),
            service_account: None,
        };
        for name in ["tracefs", "seccomp", "runtime"] {
            fs::create_dir(node.directory.path().join(name))?;
        }
        Ok(node)
    }

    /// The same in a cluster whose pods have this service account.
    ///
    /// # Errors
    /// As of [`Node::new`].
    pub fn in_cluster(config: &str, service_account: ServiceAccount) -> Result<Self> {
        Ok(Self {
            service_account: Some(service_account),
            ..Self::new(config)?
        })
    }

    /// The service account of its pods, if it is in a cluster.
    #[must_use]
    pub fn service_account(&self) -> Option<&ServiceAccount> {
        self.service_account.as_ref()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the kubelet looks for seccomp profiles.
    #[must_use]
    pub fn seccomp(&self) -> PathBuf {
        self.path("seccomp")
    }

    /// What is pinned in its bpffs.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs.pins()
    }

    /// Where a volume of a pod is on this node; `own` is a directory of the container's.
    fn source(&self, volume: &Value, own: &Path) -> Result<PathBuf> {
        let name = volume["name"].as_str().context("a volume without a name")?;
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            return Ok(match path {
                "/sys/kernel/tracing" => self.path("tracefs"),
                "/sys/fs/bpf" => {
                    let pins = self.bpffs.pins();
                    pins.parent().context("the bpffs")?.to_owned()
                }
                "/var/lib/kubelet/seccomp" => self.seccomp(),
                other => bail!("no such path on this node: {other}"),
            });
        }
        let directory = own.join(name);
        if !volume["configMap"].is_null() {
            fs::create_dir_all(&directory)?;
            fs::write(directory.join("pendguard.toml"), &self.config)?;
        } else if volume["emptyDir"].is_null() {
            bail!("a volume of a kind that is not known here: {volume}");
        } else {
            fs::create_dir_all(&directory)?;
        }
        Ok(directory)
    }
}

/// A bundle, as the runtime's specification calls it.
struct Bundle {
    directory: TempDir,
    id: String,
    runtime: PathBuf,
    tracefs: PathBuf,
    /// What the runtime is told of the container's process.
    process: Value,
}

impl Bundle {
    /// What becomes of a container of a pod.
    fn new(image: &Image, node: &Node, pod: &Value, name: &str) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir()?;
        let spec = specification(image, node, pod, name, directory.path())?;
        fs::write(directory.path().join("config.json"), spec.to_string())?;
        Ok(Self {
            directory,
            id: format!("pendguard-{}-{serial}", std::process::id()),
            runtime: node.path("runtime"),
            tracefs: node.path("tracefs"),
            process: spec["process"].clone(),
        })
    }

    fn crun(&self, verb: &str) -> std::process::Command {
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .args(["sh", "-c", AS_ON_A_NODE, "sh"])
            .arg(&self.tracefs)
            // Limits of memory and CPU are the cluster's business.
            .args(["crun", "--cgroup-manager=disabled", "--root"])
            .arg(&self.runtime)
            .arg(verb);
        command
    }

    fn run(&self) -> std::process::Command {
        let mut command = self.crun("run");
        command
            .arg("--bundle")
            .arg(self.directory.path())
            .arg(&self.id);
        command
    }

    /// Another process in the running container: as containerd and CRI-O do for `kubectl exec`, with all that the container's own has.
    fn exec(&self, words: &[&str]) -> Result<std::process::Command> {
        let mut process = self.process.clone();
        process["args"] = json!(words);
        let path = self.directory.path().join("process.json");
        fs::write(&path, process.to_string())?;
        let mut command = self.crun("exec");
        command.arg("--process").arg(path).arg(&self.id);
        Ok(command)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A runtime that is killed leaves its container running. Without cgroups, and with the machine's processes, `delete --force` kills nobody. Where
        // nothing is left both fail.
        for (verb, arguments) in [
            ("kill", [&*self.id, "KILL"]),
            ("delete", ["--force", &self.id]),
        ] {
            let _ = self
                .crun(verb)
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// The runtime's specification of a container, with exactly its securityContext.
fn specification(image: &Image, node: &Node, pod: &Value, name: &str, own: &Path) -> Result<Value> {
    let spec = container(pod, name)?;
    let security = &spec["securityContext"];
    for wanted in ["privileged", "allowPrivilegeEscalation"] {
        ensure!(security[wanted] == false, "{name}: {wanted}");
    }
    ensure!(
        security["capabilities"]["drop"] == json!(["ALL"]),
        "{name}: the runtime's own capabilities are kept"
    );
    let capabilities: Vec<_> = added(spec)
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
    let mut namespaces = vec!["mount", "ipc", "uts"];
    if pod["hostPID"] != true {
        namespaces.push("pid");
    }
    let mut linux = json!({
        // The network is the machine's: the pod's address is one of it.
        "namespaces": namespaces.iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>(),
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
    });
    let profile = &security["seccompProfile"];
    match profile["type"].as_str() {
        Some("Localhost") => {
            let file = profile["localhostProfile"].as_str().context("which?")?;
            let path = node.seccomp().join(file);
            let text = fs::read(&path).with_context(|| path.display().to_string())?;
            linux["seccomp"] = serde_json::from_slice(&text)?;
        }
        // That of containerd is part of it; there is none here.
        Some("RuntimeDefault") => {}
        other => bail!("{name}: seccompProfile {other:?}"),
    }
    let words = [strings(&image.config["Entrypoint"]), strings(&spec["args"])].concat();
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "args": words,
            "env": environment(image, node, spec)?,
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": image.root(), "readonly": security["readOnlyRootFilesystem"]},
        "hostname": "pendguard",
        "mounts": mounts(node, pod, spec, own)?,
        "linux": linux,
    }))
}

/// The image's environment and the container's, as the kubelet fills it in.
fn environment(image: &Image, node: &Node, spec: &Value) -> Result<Vec<String>> {
    let mut all = strings(&image.config["Env"]);
    if let Some(account) = node.service_account() {
        all.extend(account.environment());
    }
    for one in spec["env"].as_array().into_iter().flatten() {
        let name = one["name"].as_str().context("a variable without a name")?;
        let field = &one["valueFrom"]["fieldRef"]["fieldPath"];
        let value = match (one["value"].as_str(), field.as_str()) {
            (Some(value), _) => value.replace("$(POD_IP)", POD_IP),
            (None, Some("spec.nodeName")) => NODE_NAME.to_owned(),
            (None, Some("status.podIP")) => POD_IP.to_owned(),
            other => bail!("{name}: {other:?}"),
        };
        all.push(format!("{name}={value}"));
    }
    Ok(all)
}

fn mounts(node: &Node, pod: &Value, spec: &Value, own: &Path) -> Result<Vec<Value>> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for mount in spec["volumeMounts"].as_array().into_iter().flatten() {
        let mut volumes = pod["volumes"].as_array().into_iter().flatten();
        let volume = volumes
            .find(|volume| volume["name"] == mount["name"])
            .with_context(|| format!("no volume for {mount}"))?;
        let propagation = match mount["mountPropagation"].as_str() {
            None => "rprivate",
            Some("HostToContainer") => "rslave",
            Some(other) => bail!("{mount}: {other}"),
        };
        let writable = if mount["readOnly"] == true {
            "ro"
        } else {
            "rw"
        };
        mounts.push(json!({
            "destination": mount["mountPath"], "type": "bind", "source": node.source(volume, own)?,
            "options": ["rbind", propagation, writable],
        }));
    }
    let account = node.service_account();
    if let Some(account) = account.filter(|_| pod["automountServiceAccountToken"] != false) {
        mounts.push(json!({
            "destination": MOUNTED, "type": "bind", "source": account.path(), "options": ["rbind", "rprivate", "ro"],
        }));
    }
    Ok(mounts)
}

/// Runs a container that ends by itself.
///
/// # Errors
/// It can't be started.
pub async fn run(image: &Image, node: &Node, pod: &Value, name: &str) -> Result<Output> {
    let bundle = Bundle::new(image, node, pod, name)?;
    Ok(Command::from(bundle.run())
        .stdin(Stdio::null())
        .output()
        .await?)
}

/// An agent in a container.
pub struct Container {
    /// It, as every other test sees one.
    pub agent: Agent,
    bundle: Bundle,
}

impl Container {
    /// Runs the pod's init containers in their order, then the agent, and waits until it is ready.
    ///
    /// # Errors
    /// One of them fails.
    pub async fn start(image: &Image, node: &Node, pod: &Value) -> Result<Self> {
        for init in pod["initContainers"].as_array().into_iter().flatten() {
            let name = init["name"].as_str().context("a container's name")?;
            let output = run(image, node, pod, name).await?;
            ensure!(output.status.success(), "{name}: {output:?}");
        }
        let bundle = Bundle::new(image, node, pod, "agent")?;
        let spec = container(pod, "agent")?;
        let port = &spec["ports"][0]["containerPort"];
        let metrics: SocketAddr = format!("{POD_IP}:{port}").parse()?;
        // The volume at the API's place.
        let socket = bundle.directory.path().join("run/api.sock");
        let command = Command::from(bundle.run());
        let agent = Agent::start_elsewhere(command, metrics, socket).await?;
        Ok(Self { agent, bundle })
    }

    /// The process of the agent itself.
    ///
    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> Result<u32> {
        let output = self.bundle.crun("state").arg(&self.bundle.id).output()?;
        let state: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(state["pid"].as_u64().context("no pid")?.try_into()?)
    }

    /// What it may do, as the kernel says: the lines of `/proc/<pid>/status`.
    ///
    /// # Errors
    /// It has ended.
    pub fn status(&self, name: &str) -> Result<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.strip_prefix(':'));
        Ok(value
            .with_context(|| format!("no {name}"))?
            .trim()
            .to_owned())
    }

    /// What `kubectl exec POD -- WORDS` runs, with its input closed. One at a time: the runtime reads what it is to run from a file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn exec(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::from(self.bundle.exec(words)?);
        command.stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }
}
