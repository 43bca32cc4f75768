//! The verb `manifests`: what of `deploy/kustomize` is made from other files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::setup::Setup;
use crate::workspace::Workspace;

/// What Prometheus is told by its own file ...
const RULES: &str = "deploy/prometheus/rules.yaml";
/// ... and by the operator.
const RULE_OBJECT: &str = "deploy/kustomize/monitoring/prometheus-rule.yaml";
/// What names the image.
const WITH_IMAGE: [&str; 2] = [
    "deploy/kustomize/base/daemonset.yaml",
    "deploy/kustomize/uninstall/daemonset.yaml",
];
const IMAGE: &str = "image: pendguard:";

/// What can be applied.
const ROOTS: [&str; 12] = [
    "deploy",
    "deploy/kustomize/overlays/audit",
    "deploy/kustomize/overlays/audit-debian",
    "deploy/kustomize/overlays/enforce-gate",
    "deploy/kustomize/overlays/enforce-gate-debian",
    "deploy/kustomize/overlays/enforce-rewrite",
    "deploy/kustomize/overlays/openshift",
    "deploy/kustomize/overlays/openshift-enforce-gate",
    "deploy/kustomize/overlays/openshift-enforce-rewrite",
    "deploy/kustomize/monitoring",
    "deploy/kustomize/uninstall",
    "deploy/kustomize/uninstall-openshift",
];

/// Writes what is made from other files, or with `check` complains where it differs; then renders all of it.
pub fn run(workspace: &Workspace, check: bool) -> Result<()> {
    let kubectl = Setup::new(workspace).for_manifests()?;
    for (path, text) in made(workspace)? {
        let found = fs::read_to_string(&path).unwrap_or_default();
        if found == text {
            continue;
        }
        if check {
            bail!(
                "{} is not what is made for it: run `cargo xtask manifests`",
                workspace.display(&path)
            );
        }
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        eprintln!("manifests: {}: written", workspace.display(&path));
    }
    for root in ROOTS {
        let rendered = render(workspace, &kubectl, root)?;
        let kinds: Vec<_> = rendered
            .lines()
            .filter_map(|line| line.strip_prefix("kind: "))
            .collect();
        eprintln!("manifests: {root}: {}", kinds.join(" "));
    }
    Ok(())
}

/// What kubectl makes of one of [`ROOTS`].
fn render(workspace: &Workspace, kubectl: &Path, root: &str) -> Result<String> {
    let mut command = Command::new(kubectl);
    process::stdout(command.arg("kustomize").arg(workspace.path(root)))
}

/// Renders all of it into `directory`, for machines without kubectl: `deploy/a/b` is `a/b.yaml` there. What is so already isn't touched.
pub fn render_into(workspace: &Workspace, directory: &Path) -> Result<()> {
    let kubectl = Setup::new(workspace).for_manifests()?;
    for root in ROOTS {
        let Some(name) = root.strip_prefix("deploy/") else {
            continue;
        };
        let path = directory.join(format!("{name}.yaml"));
        let rendered = render(workspace, &kubectl, root)?;
        if fs::read_to_string(&path).is_ok_and(|found| found == rendered) {
            continue;
        }
        let context = || path.display().to_string();
        let parent = path.parent().with_context(context)?;
        fs::create_dir_all(parent).with_context(context)?;
        fs::write(&path, rendered).with_context(context)?;
    }
    Ok(())
}

fn made(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
    let rules = workspace.path(RULES);
    let mut made = vec![(workspace.path(RULE_OBJECT), rule_object(&read(&rules)?))];
    for name in WITH_IMAGE {
        let path = workspace.path(name);
        let text = with_image(&read(&path)?, env!("CARGO_PKG_VERSION"));
        made.push((path, text));
    }
    Ok(made)
}

/// The operator's object with these rules.
fn rule_object(rules: &str) -> String {
    let mut text = format!(
        "# Made from {RULES} by `cargo xtask manifests`.\n\
         apiVersion: monitoring.coreos.com/v1\n\
         kind: PrometheusRule\n\
         metadata:\n  \
           name: pendguard\n\
         spec:\n"
    );
    for line in rules.lines() {
        if !line.is_empty() {
            text.push_str("  ");
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

/// With the image of this version.
fn with_image(text: &str, version: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        match line.split_once(IMAGE) {
            Some((before, _)) => out += &format!("{before}{IMAGE}{version}"),
            None => out += line,
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_indented_and_nothing_else() {
        let object = rule_object("groups:\n  - name: a\n\n    rules: []\n");
        assert!(
            object.ends_with("spec:\n  groups:\n    - name: a\n\n      rules: []\n"),
            "{object}"
        );
    }

    #[test]
    fn every_image_gets_the_version() {
        let text = "a:\n  image: pendguard:1\nb:\n    image: pendguard:2 # x\n";
        assert_eq!(
            with_image(text, "3.0"),
            "a:\n  image: pendguard:3.0\nb:\n    image: pendguard:3.0\n"
        );
    }
}
