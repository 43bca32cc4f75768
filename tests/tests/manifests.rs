//! The manifests in `deploy`: valid for Kubernetes, and exactly what the agent needs.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::deployment::{
    added, container, deploy, objects, only, pod_spec, render, render_at, strings,
};
use pendguard_tests::peers::target_directory;
use pendguard_tests::prometheus::rules;
use serde_json::{Value, json};
use tokio::process::Command;

/// The oldest Kubernetes that the manifests are for (`appArmorProfile`), and the newest whose schemas there are.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];
/// Objects that Kubernetes itself doesn't know: of OpenShift, and of the Prometheus Operator.
const OTHERS: [&str; 3] = ["SecurityContextConstraints", "PodMonitor", "PrometheusRule"];
/// What enables the agent in each overlay: THREAT_MODEL.md, "Least privileges".
const OVERLAYS: [(&str, &[&str]); 8] = [
    ("audit", AUDIT),
    (
        "audit-debian",
        &["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"],
    ),
    ("enforce-gate", GATE),
    (
        "enforce-gate-debian",
        &["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "NET_ADMIN"],
    ),
    ("enforce-rewrite", REWRITE),
    ("openshift", AUDIT),
    ("openshift-enforce-gate", GATE),
    ("openshift-enforce-rewrite", REWRITE),
];
const AUDIT: &[&str] = &["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"];
const GATE: &[&str] = &[
    "BPF",
    "PERFMON",
    "SYS_PTRACE",
    "DAC_READ_SEARCH",
    "NET_ADMIN",
];
const REWRITE: &[&str] = &["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"];
/// Everything that can be applied.
const ROOTS: [&str; 11] = [
    "kustomize/overlays/audit",
    "kustomize/overlays/audit-debian",
    "kustomize/overlays/enforce-gate",
    "kustomize/overlays/enforce-gate-debian",
    "kustomize/overlays/enforce-rewrite",
    "kustomize/overlays/openshift",
    "kustomize/overlays/openshift-enforce-gate",
    "kustomize/overlays/openshift-enforce-rewrite",
    "kustomize/monitoring",
    "kustomize/uninstall",
    "kustomize/uninstall-openshift",
];
/// What a client-side `kubectl apply` keeps of an object in an annotation, at most.
const ANNOTATION: usize = 262_144;

fn overlay(name: &str) -> String {
    format!("kustomize/overlays/{name}")
}

/// Whether an agent of that overlay can reject.
fn enforces(overlay: &str) -> bool {
    overlay.contains("enforce")
}

/// Each of these names has this value.
fn has(object: &Value, expected: &Value) -> Result<()> {
    for (name, value) in expected.as_object().context("an object")? {
        ensure!(
            object[name] == *value,
            "{name}: {}, not {value}",
            object[name]
        );
    }
    Ok(())
}

/// The schemas are made from Kubernetes' own OpenAPI; unknown fields are errors.
#[tokio::test]
async fn kubernetes_takes_them() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut files = Vec::new();
    let mut kinds = BTreeSet::new();
    for root in ROOTS {
        let file = directory.path().join(root.replace('/', "-"));
        std::fs::write(&file, render(root).await?)?;
        files.push(file);
        kinds.extend(
            objects(root)
                .await?
                .iter()
                .map(|object| object["kind"].to_string()),
        );
    }
    // And what the docs have readers write.
    let documented = directory.path().join("documented");
    std::fs::write(&documented, prometheus_may_find_pods()?)?;
    files.push(documented);
    for (name, patch) in OWN {
        let file = directory.path().join(name);
        std::fs::write(&file, own(patch, "audit").await?)?;
        files.push(file);
    }
    for version in KUBERNETES {
        let validate = target_directory().join("schemas/bin/kubernetes-validate");
        let output = Command::new(validate)
            .args(["--strict", "--kubernetes-version", version])
            .args(&files)
            .output()
            .await
            .context("kubernetes-validate (run `cargo xtask setup --tests`)")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(output.status.success(), "{version}: {said}");
        for line in said.lines() {
            let other = OTHERS
                .iter()
                .any(|kind| line.contains(&format!("kind {kind} ")));
            ensure!(line.contains(" passed ") || other, "{version}: {line}");
        }
        for kind in &kinds {
            let kind = kind.trim_matches('"');
            let judged = said.contains(&format!("resource {}/", kind.to_lowercase()));
            ensure!(
                judged != OTHERS.contains(&kind),
                "{version}: {kind}: {said}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_default_is_the_audit() -> Result<()> {
    ensure!(render("").await? == render(&overlay("audit")).await?);
    Ok(())
}

#[tokio::test]
async fn each_overlay_has_its_capabilities_and_no_more() -> Result<()> {
    for (name, capabilities) in OVERLAYS {
        let objects = objects(&overlay(name)).await?;
        let pod = pod_spec(&objects)?;
        let agent = container(pod, "agent")?;
        let security = json!({
            "runAsUser": 0, "runAsGroup": 0, "privileged": false, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"add": capabilities, "drop": ["ALL"]},
            "seccompProfile": {"type": "Localhost", "localhostProfile": "pendguard.json"},
            "appArmorProfile": {"type": "Unconfined"},
        });
        ensure!(agent["securityContext"] == security, "{name}: {agent}");
        let init = container(pod, "seccomp")?;
        ensure!(added(init).is_empty(), "{name}: {init}");
        has(
            &init["securityContext"],
            &json!({"privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true}),
        )?;
        has(
            pod,
            &json!({"hostPID": true, "hostNetwork": null, "hostIPC": null, "hostUsers": null, "enableServiceLinks": false}),
        )?;
        let enforces = enforces(name);
        let enforcer = match name {
            _ if name.ends_with("enforce-rewrite") => Some("rewrite"),
            _ if enforces => Some("gate"),
            _ => None,
        };
        ensure!(
            variable(agent, "PENDGUARD_ENFORCER") == enforcer,
            "{name}: {agent}"
        );
        mounts(pod, agent, enforces).with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let mut all = container["env"].as_array()?.iter();
    all.find(|one| one["name"] == name)?["value"].as_str()
}

/// What the agent sees of the host, and how.
fn mounts(pod: &Value, agent: &Value, enforces: bool) -> Result<()> {
    let mut found = BTreeSet::new();
    for mount in agent["volumeMounts"].as_array().into_iter().flatten() {
        let mut volumes = pod["volumes"].as_array().into_iter().flatten();
        let volume = volumes
            .find(|volume| volume["name"] == mount["name"])
            .with_context(|| format!("no volume for {mount}"))?;
        let place = mount["mountPath"].as_str().context("no place")?;
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            ensure!(
                path == place && volume["hostPath"]["type"] == "Directory",
                "{volume}"
            );
            let writable = mount["readOnly"] != true;
            ensure!(writable == (place == "/sys/fs/bpf"), "{mount}");
            // Where the node mounts its bpffs after the pod has started, the pod is to have that one, not the directory below it.
            let propagation = writable.then_some("HostToContainer");
            ensure!(mount["mountPropagation"].as_str() == propagation, "{mount}");
        }
        found.insert(place.to_owned());
    }
    let mut expected = BTreeSet::from(
        ["/etc/pendguard", "/run/pendguard", "/sys/kernel/tracing"].map(str::to_owned),
    );
    if enforces {
        expected.insert("/sys/fs/bpf".to_owned());
    }
    ensure!(found == expected, "{found:?}");
    Ok(())
}

#[tokio::test]
async fn nodes_are_watched_one_by_one_and_asked_whether_they_are_well() -> Result<()> {
    let objects = objects(&overlay("audit")).await?;
    let set = only(&objects, "DaemonSet")?;
    ensure!(
        set["spec"]["updateStrategy"]
            == json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}})
    );
    let pod = pod_spec(&objects)?;
    let agent = container(pod, "agent")?;
    for (probe, path) in [
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ] {
        ensure!(
            agent[probe]["httpGet"] == json!({"path": path, "port": "metrics"}),
            "{probe}: {agent}"
        );
    }
    ensure!(agent["ports"] == json!([{"name": "metrics", "containerPort": 9470}]));
    ensure!(variable(agent, "PENDGUARD_METRICS_LISTEN") == Some("$(POD_IP):9470"));
    // A variable can refer only to those before it.
    let env: Vec<_> = agent["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["name"].as_str())
        .collect();
    let place = |name| env.iter().position(|one| *one == name);
    ensure!(
        place("POD_IP").is_some() && place("POD_IP") < place("PENDGUARD_METRICS_LISTEN"),
        "{env:?}"
    );
    for (name, field) in [("NODE_NAME", "spec.nodeName"), ("POD_IP", "status.podIP")] {
        let mut all = agent["env"].as_array().into_iter().flatten();
        let one = all.find(|one| one["name"] == name).context(name)?;
        ensure!(one["valueFrom"]["fieldRef"]["fieldPath"] == field, "{one}");
    }
    ensure!(pod["tolerations"] == json!([{"operator": "Exists"}]));
    // On every node that has a kernel of its own, for which the image is.
    let nodes = json!([
        {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
        {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
        {"key": "eks.amazonaws.com/compute-type", "operator": "NotIn", "values": ["fargate"]},
        {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]},
    ]);
    ensure!(
        pod["affinity"]
            == json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": nodes}]}}}),
        "{}",
        pod["affinity"]
    );
    let class = only(&objects, "PriorityClass")?;
    ensure!(pod["priorityClassName"] == class["metadata"]["name"]);
    for name in ["agent", "seccomp"] {
        let container = container(pod, name)?;
        let image = format!("pendguard:{}", env!("CARGO_PKG_VERSION"));
        ensure!(container["image"] == image, "{container}");
        let resources = &container["resources"];
        ensure!(
            resources["requests"]["cpu"].is_string() && resources["limits"]["memory"].is_string(),
            "{resources}"
        );
    }
    Ok(())
}

/// The agent may read what it asks for (`discovery::kube`), and where it may reject, create events (`announce`); nothing else.
#[tokio::test]
async fn it_may_read_pods_and_namespaces_and_change_none() -> Result<()> {
    for (name, _) in OVERLAYS {
        let objects = objects(&overlay(name)).await?;
        let role = only(&objects, "ClusterRole")?;
        let mut rules = vec![
            json!({"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list", "watch"]}),
        ];
        // Who rejects says so, where operators look.
        let tells = enforces(name);
        if tells {
            rules.push(json!({"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}));
        }
        ensure!(role["rules"] == Value::Array(rules), "{name}: {role}");
        let agent = container(pod_spec(&objects)?, "agent")?;
        let told = variable(agent, "PENDGUARD_KUBE_EVENTS");
        ensure!(told == tells.then_some("true"), "{name}: {agent}");
        let account = &only(&objects, "ServiceAccount")?["metadata"];
        let binding = only(&objects, "ClusterRoleBinding")?;
        ensure!(binding["roleRef"]["name"] == role["metadata"]["name"]);
        ensure!(
            binding["subjects"]
                == json!([{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]),
            "{binding}"
        );
        ensure!(pod_spec(&objects)?["serviceAccountName"] == account["name"]);
        let namespace = &only(&objects, "Namespace")?["metadata"];
        ensure!(namespace["name"] == account["namespace"]);
        // Pods with hostPID are let in.
        ensure!(namespace["labels"]["pod-security.kubernetes.io/enforce"] == "privileged");
    }
    Ok(())
}

/// A changed file is a new ConfigMap, which the pods name: a rollout.
#[tokio::test]
async fn the_configuration_is_the_file() -> Result<()> {
    let file = std::fs::read_to_string(deploy("kustomize/base/pendguard.toml"))?;
    for (name, _) in OVERLAYS {
        let objects = objects(&overlay(name)).await?;
        let map = only(&objects, "ConfigMap")?;
        ensure!(map["data"] == json!({"pendguard.toml": file}), "{map}");
        let pod = pod_spec(&objects)?;
        let mut volumes = pod["volumes"].as_array().into_iter().flatten();
        let volume = volumes.find(|volume| volume["name"] == "config");
        let named = &volume.context("no config")?["configMap"]["name"];
        ensure!(*named == map["metadata"]["name"], "{named}");
        let hash = named.as_str().and_then(|n| n.strip_prefix("pendguard-"));
        ensure!(hash.is_some_and(|hash| hash.len() >= 8), "{named}");
        let agent = container(pod, "agent")?;
        ensure!(strings(&agent["args"]) == ["run", "--config", "/etc/pendguard/pendguard.toml"]);
    }
    Ok(())
}

/// A block of docs/install.md by its first line, a comment.
fn documented(name: &str) -> Result<String> {
    let docs = std::fs::read_to_string(deploy("../docs/install.md"))?;
    let (before, block) = docs
        .split_once(&format!("# {name}\n"))
        .with_context(|| format!("docs/install.md has no block \"{name}\""))?;
    let indent = before.rsplit('\n').next().unwrap_or_default();
    let (block, _) = block.split_once("```").context("an open end")?;
    Ok(block
        .lines()
        .map(|line| line.strip_prefix(indent).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect())
}

/// Blocks that are added to an overlay of one's own.
const OWN: [(&str, &str); 4] = [
    (
        "secret",
        "my-pendguard/kustomization.yaml, besides: imagePullSecrets",
    ),
    (
        "selinux",
        "my-pendguard/kustomization.yaml, besides: seLinuxOptions",
    ),
    (
        "cos",
        "my-pendguard-cos/kustomization.yaml, besides: over overlays/audit",
    ),
    (
        "ubuntu",
        "my-pendguard-ubuntu/kustomization.yaml, besides: over overlays/audit-debian",
    ),
];
/// The file that replaces the agents' configuration there.
const OWN_FILE: &str = "mode = \"off\"\n";

/// What kubectl makes of the docs' overlay of one's own, over that overlay of `deploy`, with another block of the docs behind it.
async fn own(besides: &str, over: &str) -> Result<String> {
    const PLACE: &str = "../pendguard/deploy/kustomize/overlays/audit\n";
    let mut block = documented("my-pendguard/kustomization.yaml")?;
    ensure!(block.contains(PLACE), "{block}");
    if !besides.is_empty() {
        block += &documented(besides)?;
    }
    let directory = tempfile::tempdir()?;
    let place = directory.path().canonicalize()?;
    let there = relative(&place, &deploy(&overlay(over)).canonicalize()?);
    std::fs::write(
        place.join("kustomization.yaml"),
        block.replace(PLACE, &(there + "\n")),
    )?;
    std::fs::write(place.join("pendguard.toml"), OWN_FILE)?;
    render_at(&place).await
}

/// kustomize takes relative paths only.
fn relative(from: &Path, to: &Path) -> String {
    let up = "../".repeat(from.components().count() - 1);
    format!("{up}{}", to.display().to_string().trim_start_matches('/'))
}

async fn own_objects(besides: &str, over: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(&own(besides, over).await?)?)
}

/// What the docs tell users to write: their registry and their configuration, over an overlay that they leave as it is.
#[tokio::test]
async fn an_overlay_of_ones_own() -> Result<()> {
    let objects = own_objects("", "audit").await?;
    ensure!(only(&objects, "ConfigMap")?["data"] == json!({"pendguard.toml": OWN_FILE}));
    let pod = pod_spec(&objects)?;
    for name in ["agent", "seccomp"] {
        let image = &container(pod, name)?["image"];
        let own = format!(
            "registry.example.com/pendguard:{}",
            env!("CARGO_PKG_VERSION")
        );
        ensure!(*image == own, "{image}");
    }
    ensure!(added(container(pod, "agent")?) == AUDIT);
    Ok(())
}

/// What the docs tell users to write besides, where it has to be.
#[tokio::test]
async fn what_is_patched_in_ones_own() -> Result<()> {
    let [(_, secret), (_, selinux), ..] = OWN;
    let objects = own_objects(secret, "audit").await?;
    let pod = pod_spec(&objects)?;
    ensure!(pod["imagePullSecrets"] == json!([{"name": "registry"}]));
    let labels = json!({"seLinuxOptions": {"type": "spc_t"}});
    let objects = own_objects(selinux, "audit").await?;
    ensure!(pod_spec(&objects)?["securityContext"] == labels);
    // The same block fits what uninstalls.
    let directory = tempfile::tempdir()?;
    let place = directory.path().canonicalize()?;
    let there = relative(&place, &deploy("kustomize/uninstall").canonicalize()?);
    let block = format!("resources: [{there}]\n{}", documented(selinux)?);
    std::fs::write(place.join("kustomization.yaml"), block)?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&render_at(&place).await?)?;
    ensure!(pod_spec(&objects)?["securityContext"] == labels);
    Ok(())
}

/// Two overlays in one cluster: neither has anything of the other's but the namespace, takes its pods for its own, or runs on its nodes.
#[tokio::test]
async fn nodes_of_several_kinds() -> Result<()> {
    let [.., (_, cos), (_, ubuntu)] = OWN;
    let mut taken = BTreeSet::new();
    let mut kinds = Vec::new();
    for (name, block, over) in [("cos", cos, "audit"), ("ubuntu", ubuntu, "audit-debian")] {
        let objects = own_objects(block, over).await?;
        for object in &objects {
            let (kind, called) = (&object["kind"], &object["metadata"]["name"]);
            let namespace = &object["metadata"]["namespace"];
            if kind == "Namespace" {
                ensure!(called == "pendguard", "{object}");
                continue;
            }
            ensure!(
                namespace.is_null() || namespace == "pendguard",
                "{namespace}"
            );
            ensure!(
                taken.insert((kind.to_string(), called.to_string())),
                "both have {kind} {called}"
            );
        }
        let set = only(&objects, "DaemonSet")?;
        ensure!(set["metadata"]["name"] == format!("pendguard-{name}"));
        let selector = &set["spec"]["selector"]["matchLabels"];
        ensure!(
            *selector == json!({"app.kubernetes.io/name": "pendguard", "pendguard.io/nodes": name}),
            "{selector}"
        );
        let template = &set["spec"]["template"];
        ensure!(template["metadata"]["labels"] == *selector, "{template}");
        let pod = pod_spec(&objects)?;
        ensure!(pod["nodeSelector"] == json!({"pendguard.io/nodes": name}));
        // What it refers to goes by the same new names.
        ensure!(pod["serviceAccountName"] == only(&objects, "ServiceAccount")?["metadata"]["name"]);
        ensure!(pod["priorityClassName"] == only(&objects, "PriorityClass")?["metadata"]["name"]);
        let binding = only(&objects, "ClusterRoleBinding")?;
        ensure!(binding["subjects"][0]["name"] == pod["serviceAccountName"]);
        ensure!(binding["roleRef"]["name"] == only(&objects, "ClusterRole")?["metadata"]["name"]);
        let map = only(&objects, "ConfigMap")?;
        ensure!(map["data"] == json!({"pendguard.toml": OWN_FILE}));
        let mut volumes = pod["volumes"].as_array().into_iter().flatten();
        ensure!(
            volumes.any(|volume| volume["configMap"]["name"] == map["metadata"]["name"]),
            "{pod}"
        );
        kinds.push(added(container(pod, "agent")?));
    }
    ensure!(kinds[0] == AUDIT && kinds[1][0] == "SYS_ADMIN", "{kinds:?}");
    Ok(())
}

fn prometheus_may_find_pods() -> Result<String> {
    documented("my-prometheus-rbac.yaml")
}

/// A Prometheus that isn't the operator's may find the agents, and nothing else.
#[tokio::test]
async fn a_prometheus_of_ones_own() -> Result<()> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(&prometheus_may_find_pods()?)?;
    let role = only(&objects, "Role")?;
    ensure!(
        role["rules"]
            == json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}])
    );
    let binding = only(&objects, "RoleBinding")?;
    has(
        &binding["roleRef"],
        &json!({"kind": "Role", "name": role["metadata"]["name"]}),
    )?;
    let agents = objects_of_audit().await?;
    let account = &only(&agents, "ServiceAccount")?["metadata"]["namespace"];
    for object in [role, binding] {
        ensure!(object["metadata"]["namespace"] == *account, "{object}");
    }
    Ok(())
}

#[tokio::test]
async fn openshift_lets_it_do_that_and_no_more() -> Result<()> {
    for (name, _) in OVERLAYS {
        if name.starts_with("openshift") {
            let objects = objects(&overlay(name)).await?;
            admitted(&objects, "agent", "pendguard").with_context(|| name.to_owned())?;
        }
    }
    Ok(())
}

/// The SecurityContextConstraints allow what the pods have, and no more, to their account alone: `name` in a namespace of that name.
fn admitted(objects: &[Value], containers: &str, name: &str) -> Result<()> {
    let scc = only(objects, "SecurityContextConstraints")?;
    let pod = pod_spec(objects)?;
    ensure!(
        strings(&scc["allowedCapabilities"]) == added(container(pod, containers)?),
        "{scc}"
    );
    has(
        scc,
        &json!({
            "allowHostPID": true, "allowHostDirVolumePlugin": true,
            "allowPrivilegedContainer": false, "allowPrivilegeEscalation": false,
            "allowHostNetwork": false, "allowHostIPC": false, "allowHostPorts": false,
            "readOnlyRootFilesystem": true, "requiredDropCapabilities": ["ALL"],
            "seccompProfiles": ["localhost/pendguard.json", "runtime/default"],
            "users": [format!("system:serviceaccount:{name}:{name}")],
        }),
    )?;
    let account = &only(objects, "ServiceAccount")?["metadata"];
    has(account, &json!({"name": name, "namespace": name}))?;
    ensure!(pod["serviceAccountName"] == name, "{pod}");
    let mut needed: BTreeSet<String> = BTreeSet::new();
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds = volume.as_object().context("a volume")?.keys();
        needed.extend(kinds.filter(|key| *key != "name").cloned());
    }
    // The token is mounted by the API server.
    if pod["automountServiceAccountToken"] != false {
        needed.insert("projected".to_owned());
    }
    let volumes = strings(&scc["volumes"]);
    ensure!(
        volumes.iter().cloned().collect::<BTreeSet<_>>() == needed,
        "{volumes:?}, needed: {needed:?}"
    );
    // container_t may look at no other container.
    ensure!(pod["securityContext"]["seLinuxOptions"]["type"] == "spc_t");
    let annotations = &only(objects, "DaemonSet")?["spec"]["template"]["metadata"]["annotations"];
    ensure!(annotations["openshift.io/required-scc"] == scc["metadata"]["name"]);
    Ok(())
}

#[tokio::test]
async fn what_is_monitored_is_what_the_files_say() -> Result<()> {
    let monitoring = objects("kustomize/monitoring").await?;
    let agents = objects(&overlay("audit")).await?;
    let monitor = only(&monitoring, "PodMonitor")?;
    let template = &only(&agents, "DaemonSet")?["spec"]["template"];
    let selected = monitor["spec"]["selector"]["matchLabels"]
        .as_object()
        .context("no selector")?;
    for (name, value) in selected {
        ensure!(template["metadata"]["labels"][name] == *value, "{name}");
    }
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    // Without honorLabels, namespace and pod of the sources would be renamed.
    has(
        endpoint,
        &json!({"port": "metrics", "path": "/metrics", "honorLabels": true}),
    )?;
    // In the agents' own namespace, whose name with the object's is the job: the alert knows agents by it.
    let account = only(&agents, "ServiceAccount")?;
    ensure!(monitor["metadata"]["namespace"] == account["metadata"]["namespace"]);
    ensure!(monitor["metadata"]["name"] == "pendguard");

    let shipped: Value = serde_saphyr::from_str(&std::fs::read_to_string(rules())?)?;
    let rendered = &only(&monitoring, "PrometheusRule")?["spec"];
    ensure!(one_spaced(rendered) == one_spaced(&shipped));

    let map = only(&monitoring, "ConfigMap")?;
    let dashboard = std::fs::read_to_string(deploy("grafana/pendguard.json"))?;
    ensure!(map["data"] == json!({"pendguard.json": dashboard}));
    ensure!(map["metadata"]["labels"]["grafana_dashboard"] == "1");
    for object in &monitoring {
        ensure!(object.to_string().len() < ANNOTATION, "{}", object["kind"]);
    }
    Ok(())
}

/// With one space between words: kustomize writes folded text with more empty lines than it read, which PromQL doesn't mind.
fn one_spaced(value: &Value) -> Value {
    match value {
        Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" ").into(),
        Value::Array(list) => list.iter().map(one_spaced).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), one_spaced(value)))
            .collect(),
        other => other.clone(),
    }
}

/// As the agent, with less: it opens what is pinned and removes it.
#[tokio::test]
async fn uninstalling_takes_less() -> Result<()> {
    let agents = objects_of_audit().await?;
    for root in ["kustomize/uninstall", "kustomize/uninstall-openshift"] {
        let objects = objects(root).await?;
        let pod = pod_spec(&objects)?;
        ensure!(pod["automountServiceAccountToken"] == false);
        ensure!(
            pod["hostPID"] == true,
            "threads are known by the host's numbers"
        );
        ensure!(pod["tolerations"] == json!([{"operator": "Exists"}]));
        for (name, arguments) in [
            ("detach", ["detach", "--wait"]),
            ("stay", ["detach", "--stay"]),
        ] {
            let container = container(pod, name)?;
            ensure!(strings(&container["args"]) == arguments);
            ensure!(added(container) == ["BPF"], "{container}");
            has(
                &container["securityContext"],
                &json!({
                    "runAsUser": 0, "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "seccompProfile": {"type": "Localhost", "localhostProfile": "pendguard.json"},
                }),
            )?;
            has(
                &container["volumeMounts"][0],
                &json!({"mountPath": "/sys/fs/bpf", "mountPropagation": "HostToContainer"}),
            )?;
        }
        ensure!(
            pod["affinity"] == pod_spec(&agents)?["affinity"],
            "the same nodes"
        );
    }
    Ok(())
}

/// OpenShift lets nobody in without an account, and SELinux keeps `container_t` from the host's bpffs.
#[tokio::test]
async fn uninstalling_on_openshift() -> Result<()> {
    let objects = objects("kustomize/uninstall-openshift").await?;
    admitted(&objects, "detach", "pendguard-uninstall")?;
    // Otherwise it is what others apply.
    let others = self::objects("kustomize/uninstall").await?;
    let (mut here, there) = (pod_spec(&objects)?.clone(), pod_spec(&others)?);
    for field in ["serviceAccountName", "securityContext"] {
        here.as_object_mut().context("an object")?.remove(field);
    }
    ensure!(here == *there, "{here}");
    Ok(())
}

async fn objects_of_audit() -> Result<Vec<Value>> {
    objects(&overlay("audit")).await
}
