//! What is on the machine's disk: the agent, the tests, and what they run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::image::Image;
use crate::image;
use crate::manifests;
use crate::process;
use crate::workspace::Workspace;

/// Programs of this machine that tests start by their names.
const PROGRAMS: [&str; 12] = [
    "sh",
    "sleep",
    "unshare",
    "mount",
    "umount",
    "ls",
    "cat",
    "id",
    "dmesg",
    "env",
    "setpriv",
    "mountpoint",
];

/// What runs the image, and unpacks it: tar calls gzip.
const RUNTIME: [&str; 3] = ["crun", "tar", "gzip"];

/// Where a Python is, and its library.
const PYTHON_SAYS: &str = "import sys, sysconfig
for path in {sys._base_executable, sys.executable, sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib')}:
    print(path)";

/// What the tests use, and how they find it.
pub struct Content {
    pub image: Image,
    /// The environment of everything that runs in the machine.
    pub environment: Vec<(String, String)>,
}

/// Where a machine with Debian's programs in their places has them.
const SEARCH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// All that the tests use but the test programs themselves, where the machine is as this one.
pub fn of_this_machine(workspace: &Workspace) -> Result<Content> {
    let mut image = Image::new();
    for program in PROGRAMS {
        image.add_program(program)?;
    }
    add_built(&mut image, workspace)?;
    // Node reads the protocol itself when it starts.
    image.add(&workspace.path("tests/proto"))?;
    image.add(&workspace.target("peers/venv"))?;
    let search = add_languages(&mut image, workspace)?;
    Ok(Content {
        image,
        environment: environment(workspace, search),
    })
}

/// The same where it is another: `root` has its programs. There are no peers in Python and Node.
pub fn of_another_machine(workspace: &Workspace, root: &Path) -> Result<Content> {
    let mut image = Image::new();
    image.add_root(root)?;
    add_built(&mut image, workspace)?;
    Ok(Content {
        image,
        environment: environment(workspace, SEARCH.to_owned()),
    })
}

/// What is built for the machine, and what that reads.
fn add_built(image: &mut Image, workspace: &Workspace) -> Result<()> {
    for program in [
        "pendguard",
        "pg-source",
        "pg-client",
        "pg-stress",
        "pg-bench",
    ] {
        image.add(&workspace.target("release").join(program))?;
    }
    for tree in ["peers", "fixtures"] {
        image.add(&workspace.path("tests").join(tree))?;
    }
    image.add(&workspace.bpf_cases())?;
    image.add(&workspace.bpf_floor())?;
    image.add(&workspace.target("peers/go-peer"))
}

impl Content {
    /// Adds what the test of the image takes besides: it, what runs it, and the manifests as kubectl renders them, which is too large to come along.
    pub fn add_deployment(&mut self, workspace: &Workspace) -> Result<()> {
        for program in RUNTIME {
            self.image.add_program(program)?;
        }
        self.image.add(&image::archive(workspace))?;
        let manifests = workspace.target("vm/manifests");
        manifests::render_into(workspace, &manifests)?;
        self.image.add(&manifests)?;
        let variable = (
            "PENDGUARD_MANIFESTS".to_owned(),
            manifests.display().to_string(),
        );
        self.environment.push(variable);
        Ok(())
    }
}

/// Adds Python and Node, and says where programs are looked for.
fn add_languages(image: &mut Image, workspace: &Workspace) -> Result<String> {
    // Debian's own Python, or what the user put before it, and what the virtual environment was made from.
    let mut search = Vec::new();
    for python in [
        PathBuf::from("python3"),
        workspace.target("peers/venv/bin/python"),
    ] {
        let paths = process::stdout(Command::new(&python).args(["-c", PYTHON_SAYS]))?;
        for path in paths.lines() {
            image.add(Path::new(path))?;
        }
    }
    let python =
        process::stdout(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]))?;
    let node = process::stdout(Command::new("node").args(["-p", "process.execPath"]))?;
    image.add(Path::new(&node))?;
    for program in [python, node] {
        let directory = Path::new(&program).parent().context("a program's path")?;
        search.push(directory.display().to_string());
    }
    search.push(SEARCH.to_owned());
    Ok(search.join(":"))
}

/// The environment, with where programs are looked for.
fn environment(workspace: &Workspace, search: String) -> Vec<(String, String)> {
    [
        ("PATH", search),
        ("HOME", "/root".to_owned()),
        ("TERM", "dumb".to_owned()),
        ("RUST_BACKTRACE", "1".to_owned()),
        (
            "PENDGUARD_BIN",
            workspace.target("release/pendguard").display().to_string(),
        ),
        // Where the tests look for what is built.
        (
            "CARGO_TARGET_DIR",
            workspace.target("").display().to_string(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
