//! What is deployed: the manifests as kubectl renders them, the image, and its containers as a pod of these manifests has them.

mod container;
mod image;
mod service_account;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

pub use self::container::{Container, NODE_NAME, Node, run};
pub use self::image::Image;
pub use self::service_account::ServiceAccount;
use crate::peers::target_directory;

/// A path in `deploy`.
#[must_use]
pub fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("deploy")
        .join(path)
}

/// Where what kubectl has rendered lies, for a machine without it: `cargo xtask vm` sets it.
const RENDERED: &str = "PENDGUARD_MANIFESTS";

/// The text that `kubectl kustomize` makes of a directory in `deploy`.
///
/// # Errors
/// What it says.
pub async fn render(directory: &str) -> Result<String> {
    if let Some(rendered) = std::env::var_os(RENDERED) {
        let path = Path::new(&rendered).join(format!("{directory}.yaml"));
        return std::fs::read_to_string(&path).with_context(|| path.display().to_string());
    }
    render_at(&deploy(directory)).await
}

/// The same of any directory.
///
/// # Errors
/// What it says.
pub async fn render_at(directory: &Path) -> Result<String> {
    let unpacked = target_directory().join("tools/kubectl/usr/bin/kubectl");
    let program = if unpacked.exists() {
        unpacked
    } else {
        "kubectl".into()
    };
    let output = Command::new(program)
        .arg("kustomize")
        .arg(directory)
        .output()
        .await
        .context("kubectl (run `cargo xtask setup --tests`)")?;
    ensure!(
        output.status.success(),
        "kubectl kustomize {}: {}",
        directory.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The same as objects.
///
/// # Errors
/// What it says.
pub async fn objects(directory: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(&render(directory).await?).context("what kubectl renders")
}

/// The only object of that kind.
///
/// # Errors
/// There is none, or another one.
pub fn only<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let only = found.next().with_context(|| format!("no {kind}"))?;
    ensure!(found.next().is_none(), "more than one {kind}");
    Ok(only)
}

/// What a DaemonSet makes its pods of.
///
/// # Errors
/// There is none.
pub fn pod_spec(objects: &[Value]) -> Result<&Value> {
    Ok(&only(objects, "DaemonSet")?["spec"]["template"]["spec"])
}

/// A container of a pod, an init container or not.
///
/// # Errors
/// There is none of that name.
pub fn container<'a>(pod: &'a Value, name: &str) -> Result<&'a Value> {
    ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod[list].as_array().into_iter().flatten())
        .find(|container| container["name"] == name)
        .with_context(|| format!("no container {name}"))
}

/// The capabilities that a container adds.
#[must_use]
pub fn added(container: &Value) -> Vec<String> {
    let added = &container["securityContext"]["capabilities"]["add"];
    strings(added)
}

/// A list of strings; what is none is left out.
#[must_use]
pub fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}
