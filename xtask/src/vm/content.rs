//! What is on the machine's disk: the agent, the tests, and what they run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::image::Image;
use crate::process;
use crate::workspace::Workspace;

/// Programs of this machine that tests start by their names.
const PROGRAMS: [&str; 10] = [
    "sh", "sleep", "unshare", "mount", "umount", "ls", "cat", "id", "dmesg", "env",
];

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

/// All that the tests use but the test programs themselves.
pub fn collect(workspace: &Workspace) -> Result<Content> {
    let mut image = Image::new();
    for program in PROGRAMS {
        image.add_program(program)?;
    }
    for program in [
        "pendguard",
        "pg-source",
        "pg-client",
        "pg-stress",
        "pg-bench",
    ] {
        image.add(&workspace.target("release").join(program))?;
    }
    // Node reads the protocol itself when it starts.
    for tree in ["peers", "fixtures", "proto"] {
        image.add(&workspace.path("tests").join(tree))?;
    }
    image.add(&workspace.bpf_cases())?;
    image.add(&workspace.target("peers/go-peer"))?;
    image.add(&workspace.target("peers/venv"))?;
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
    search.push("/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let environment = [
        ("PATH", search.join(":")),
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
    .map(|(name, value)| (name.to_owned(), value));
    Ok(Content {
        image,
        environment: environment.into(),
    })
}
