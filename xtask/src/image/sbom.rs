//! What is linked into the agent, as a CycloneDX bill of materials: from what cargo resolved, its lock files, and what else is known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::process;
use crate::workspace::Workspace;

/// The packages that are shipped, and the workspaces that have them: the agent, and the BPF programs that it carries.
const SHIPPED: [(&str, &str); 2] = [
    ("Cargo.toml", "pendguard"),
    ("agent-ebpf/Cargo.toml", "agent-ebpf"),
];

/// The bill of the agent, with components that cargo doesn't know.
pub fn of_agent(workspace: &Workspace, others: impl IntoIterator<Item = Value>) -> Result<String> {
    let mut bill = Bill::default();
    for (manifest, package) in SHIPPED {
        let manifest = workspace.path(manifest);
        let metadata = metadata(workspace, &manifest)?;
        let lock = manifest.with_file_name("Cargo.lock");
        let lock = fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
        bill.add(&metadata, package, &checksums(&lock))
            .with_context(|| manifest.display().to_string())?;
    }
    for component in others {
        bill.add_linked(component)?;
    }
    Ok(serde_json::to_string_pretty(&bill.finish())? + "\n")
}

fn metadata(workspace: &Workspace, manifest: &Path) -> Result<Value> {
    let text = process::stdout(
        workspace
            .cargo("metadata")
            .args(["--format-version", "1", "--locked", "--filter-platform"])
            .arg(workspace.triple())
            .arg("--manifest-path")
            .arg(manifest),
    )?;
    serde_json::from_str(&text).context("cargo metadata")
}

/// Checksums of packages by name and version, as the lock file has them.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            package.lines().find_map(|line| {
                let value = line.strip_prefix(name)?.strip_prefix(" = ")?;
                Some(value.trim_matches('"').to_owned())
            })
        };
        if let (Some(name), Some(version), Some(sum)) =
            (field("name"), field("version"), field("checksum"))
        {
            found.insert((name, version), sum);
        }
    }
    found
}

#[derive(Default)]
struct Bill {
    /// By reference.
    components: BTreeMap<String, Value>,
    dependencies: BTreeMap<String, BTreeSet<String>>,
    /// What it is about; the first that was added.
    root: Option<Value>,
}

impl Bill {
    /// A package and all that it links; what only builds or tests it is not in the product.
    fn add(
        &mut self,
        metadata: &Value,
        package: &str,
        checksums: &BTreeMap<(String, String), String>,
    ) -> Result<()> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let packages: BTreeMap<String, Value> = list(&metadata["packages"])
            .into_iter()
            .filter_map(|package| Some((package["id"].as_str()?.to_owned(), package)))
            .collect();
        let nodes: BTreeMap<String, Value> = list(&metadata["resolve"]["nodes"])
            .into_iter()
            .filter_map(|node| Some((node["id"].as_str()?.to_owned(), node)))
            .collect();
        let root = packages
            .iter()
            .find(|(_, found)| found["name"] == package)
            .map(|(id, _)| id.clone())
            .with_context(|| format!("no package {package}"))?;
        let mut seen = BTreeSet::new();
        let mut next = vec![root.clone()];
        while let Some(id) = next.pop() {
            if !seen.insert(id.clone()) {
                continue;
            }
            let (component, reference) = component(&packages[&id], checksums);
            let mut needs = BTreeSet::new();
            for dependency in list(&nodes[&id]["deps"]) {
                let linked = list(&dependency["dep_kinds"])
                    .iter()
                    .any(|kind| kind["kind"].is_null());
                let id = dependency["pkg"].as_str().context("a dependency")?;
                if linked && !is_macro(&packages[id]) {
                    needs.insert(component_reference(&packages[id]));
                    next.push(id.to_owned());
                }
            }
            self.dependencies
                .entry(reference.clone())
                .or_default()
                .extend(needs);
            if id == root && self.root.is_none() {
                self.root = Some(component);
            } else {
                self.components.insert(reference, component);
            }
        }
        ensure!(seen.len() > 1, "{package} links nothing");
        Ok(())
    }

    /// A component that what it is about links by itself.
    fn add_linked(&mut self, component: Value) -> Result<()> {
        let text = |value: &Value| value["bom-ref"].as_str().map(str::to_owned);
        let reference = text(&component).context("a component without a reference")?;
        let root = self.root.as_ref().and_then(text).context("no product")?;
        self.dependencies
            .entry(root)
            .or_default()
            .insert(reference.clone());
        self.dependencies.entry(reference.clone()).or_default();
        self.components.insert(reference, component);
        Ok(())
    }

    fn finish(self) -> Value {
        let dependencies: Vec<_> = self
            .dependencies
            .into_iter()
            .map(|(reference, needs)| json!({"ref": reference, "dependsOn": needs}))
            .collect();
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": self.root},
            "components": self.components.into_values().collect::<Vec<_>>(),
            "dependencies": dependencies,
        })
    }
}

/// Procedural macros run in the compiler.
fn is_macro(package: &Value) -> bool {
    let mut targets = package["targets"].as_array().into_iter().flatten();
    targets.any(|target| {
        let mut kinds = target["kind"].as_array().into_iter().flatten();
        kinds.any(|kind| kind == "proc-macro")
    })
}

fn component_reference(package: &Value) -> String {
    let text = |name: &str| package[name].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> (Value, String) {
    let text = |name: &str| package[name].as_str().unwrap_or_default().to_owned();
    let reference = component_reference(package);
    let mut component = json!({
        "type": if text("name") == SHIPPED[0].1 { "application" } else { "library" },
        "bom-ref": reference,
        "name": text("name"),
        "version": text("version"),
        "purl": reference,
    });
    // An expression of SPDX; older crates separate by a slash.
    let licence = text("license").replace('/', " OR ").replace("  ", " ");
    if !licence.is_empty() {
        component["licenses"] = json!([{"expression": licence}]);
    }
    if let Some(sum) = checksums.get(&(text("name"), text("version"))) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
    }
    (component, reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(id: &str, kind: &str) -> Value {
        json!({"id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0", "targets": [{"kind": [kind]}]})
    }

    #[test]
    fn what_is_linked_is_listed_and_what_builds_it_is_not() -> Result<()> {
        let needs = |id: &str, kind: Value| json!({"pkg": id, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("pendguard", "bin"), package("linked", "lib"), package("macros", "proc-macro"),
                package("building", "lib"), package("testing", "lib"), package("deep", "lib"),
            ],
            "resolve": {"nodes": [
                {"id": "pendguard", "deps": [
                    needs("linked", Value::Null), needs("macros", Value::Null),
                    needs("building", json!("build")), needs("testing", json!("dev")),
                ]},
                {"id": "linked", "deps": [needs("deep", Value::Null)]},
                {"id": "deep", "deps": []},
            ]},
        });
        let lock =
            "version = 4\n\n[[package]]\nname = \"deep\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n";
        let mut bill = Bill::default();
        bill.add(&metadata, "pendguard", &checksums(lock))?;
        bill.add_linked(json!({"bom-ref": "pkg:deb/debian/glibc@2.36", "name": "glibc"}))?;
        let bill = bill.finish();
        assert_eq!(bill["metadata"]["component"]["type"], "application");
        let names: Vec<_> = bill["components"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|component| component["name"].as_str().unwrap_or_default())
            .collect();
        assert_eq!(names, ["deep", "linked", "glibc"]);
        assert_eq!(bill["components"][0]["hashes"][0]["content"], "ab");
        assert_eq!(
            bill["components"][0]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(
            bill["dependencies"][2],
            json!({
                "ref": "pkg:cargo/pendguard@1.0.0",
                "dependsOn": ["pkg:cargo/linked@1.0.0", "pkg:deb/debian/glibc@2.36"],
            })
        );
        Ok(())
    }
}
