//! The verb `image`: the agent as an OCI image, built without a network.

mod linked;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::build;
use crate::process;
use crate::setup::Setup;
use crate::workspace::Workspace;

/// What the image is called in its archive; the manifests name it so.
const NAME: &str = "pendguard";
/// The largest that it may be.
const LIMIT: u64 = 25 << 20;
/// Texts that go with the program.
const LICENCES: [&str; 4] = [
    "LICENSE.md",
    "LICENSE-APACHE",
    "LICENSE-GPL-2.0",
    "LICENSE-MIT",
];
/// What glibc's licence asks to go with a program that it is linked into; every Debian has it.
const LGPL: (&str, &str) = ("LICENSE-LGPL-2.1", "/usr/share/common-licenses/LGPL-2.1");
/// The list of what is linked.
const SBOM: &str = "sbom.cdx.json";

/// Where the archive is: `docker load`, `podman load` and `skopeo copy oci-archive:` take it.
pub fn archive(workspace: &Workspace) -> PathBuf {
    workspace.target("image/pendguard.oci.tar")
}

/// The verb: the agent, then its image.
pub fn run(workspace: &Workspace) -> Result<()> {
    build::run(workspace, false)?;
    Setup::new(workspace).for_image()?;
    of_built(workspace)
}

/// The image of the agent that is built.
pub fn of_built(workspace: &Workspace) -> Result<()> {
    let directory = workspace.target("image");
    let context = directory.join("context");
    lay_out(workspace, &context)?;
    let archive = archive(workspace);
    let _ = fs::remove_file(&archive);
    let reference = format!("{NAME}:{}", env!("CARGO_PKG_VERSION"));
    let storage = Storage(directory.join("storage"));
    let mut build = storage.buildah("bud");
    // Nothing is run in it, and nothing is fetched.
    build
        .args(["--isolation", "chroot", "--pull-never", "--format", "oci"])
        .args(["--timestamp", &commit_time(workspace).to_string()])
        .args(["--tag", &reference, "--file"])
        .arg(workspace.path("deploy/Containerfile"));
    for (name, value) in labels(workspace) {
        build.arg("--label").arg(format!("{name}={value}"));
    }
    process::stdout(build.arg(&context)).context("building the image")?;
    let target = format!("oci-archive:{}:{reference}", archive.display());
    process::stdout(storage.buildah("push").args([&reference, &target])).context("the archive")?;
    let size = fs::metadata(&archive)
        .with_context(|| archive.display().to_string())?
        .len();
    ensure!(
        size <= LIMIT,
        "{} has {size} octets, more than {LIMIT}",
        workspace.display(&archive)
    );
    eprintln!(
        "image: {}: {reference}, {:.1} MiB",
        workspace.display(&archive),
        size as f64 / f64::from(1 << 20)
    );
    Ok(())
}

/// Puts together what the Containerfile copies.
fn lay_out(workspace: &Workspace, context: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(context);
    let doc = context.join("doc");
    fs::create_dir_all(&doc).with_context(|| doc.display().to_string())?;
    let copy = |from: PathBuf, to: PathBuf| {
        fs::copy(&from, &to).with_context(|| format!("{} to {}", from.display(), to.display()))
    };
    let program = context.join("pendguard");
    copy(workspace.target("release/pendguard"), program.clone())?;
    // Names of functions are a fifth of it, and of use to whoever debugs a program that they built themselves.
    process::stdout(Command::new("strip").arg("--strip-all").arg(&program))?;
    for name in LICENCES {
        copy(workspace.path(name), doc.join(name))?;
    }
    let parts = linked::parts(workspace)?;
    let (name, text) = LGPL;
    copy(text.into(), doc.join(name))?;
    for (name, notice) in parts.iter().filter_map(|part| part.notice.clone()) {
        copy(notice, doc.join(name))?;
    }
    let components = parts.into_iter().map(|part| part.component);
    let sbom = sbom::of_agent(workspace, components)?;
    let path = doc.join(SBOM);
    fs::write(&path, &sbom).with_context(|| path.display().to_string())?;
    // Beside the archive, for whoever wants only that.
    copy(path, workspace.target("image").join(SBOM))?;
    Ok(())
}

/// The image's labels, as the OCI calls them.
fn labels(workspace: &Workspace) -> Vec<(&'static str, String)> {
    let mut labels = vec![
        ("org.opencontainers.image.title", "Pendguard".to_owned()),
        (
            "org.opencontainers.image.description",
            "Counts and rejects needless PendingFn calls of Numaflow sources, from the node"
                .to_owned(),
        ),
        (
            "org.opencontainers.image.version",
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
        (
            "org.opencontainers.image.licenses",
            "Apache-2.0 AND (MIT OR GPL-2.0-only) AND LGPL-2.1-or-later".to_owned(),
        ),
    ];
    if let Some(revision) = workspace.git(&["rev-parse", "HEAD"]) {
        labels.push(("org.opencontainers.image.revision", revision));
    }
    labels
}

/// When the commit was made that is built, in seconds: the same sources make the same image. 0 outside of a repository.
fn commit_time(workspace: &Workspace) -> u64 {
    workspace
        .git(&["log", "-1", "--format=%ct"])
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// Where buildah works: apart from the machine's own images, and gone afterwards.
struct Storage(PathBuf);

impl Storage {
    fn buildah(&self, verb: &str) -> Command {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", "vfs", "--root"])
            .arg(self.0.join("root"))
            .arg("--runroot")
            .arg(self.0.join("run"))
            .arg(verb);
        command
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
