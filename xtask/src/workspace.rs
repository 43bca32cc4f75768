//! Where things are, and the cargo commands that work on them.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::architecture::Architecture;
use crate::process;

/// Flags of the environment that would replace the ones this program passes: cargo takes rustflags from one place only.
const RUSTFLAGS_VARS: [&str; 2] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];

/// The repository, and where its build output goes.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
    /// What programs are compiled for: the triple of the machine's own compiler, unless they are another machine's.
    triple: String,
    /// What it takes, if they are.
    cross: Option<Cross>,
}

/// What compiles programs for another machine than this.
#[derive(Clone, Debug)]
pub struct Cross {
    /// That machine's.
    pub architecture: Architecture,
    /// The program that links.
    pub linker: &'static str,
    /// A compiler other than the repository's toolchain, and the directory that has the standard library for it.
    pub compiler: Option<(PathBuf, PathBuf)>,
}

impl Workspace {
    /// Finds the repository that this program belongs to.
    pub fn locate() -> Result<Self> {
        ensure!(
            cfg!(target_os = "linux"),
            "Pendguard is built on Linux, as it runs only there"
        );
        // `cargo run` names the place of the day; the compiled-in one is for a program started by hand.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask has no workspace above it")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(target) => std::path::absolute(target).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        let version = process::stdout(Command::new("rustc").arg("-vV").current_dir(&root))?;
        let host = process::field(&version, "host")
            .context("rustc -vV names no host")?
            .to_owned();
        Ok(Self {
            root,
            target,
            triple: host,
            cross: None,
        })
    }

    /// The same repository, built for another machine: everything that is built goes to a directory of that machine's.
    pub fn crossed(&self, cross: Cross) -> Self {
        Self {
            root: self.root.clone(),
            target: self.target(cross.architecture.debian()),
            triple: cross.architecture.triple().to_owned(),
            cross: Some(cross),
        }
    }

    /// The machine that programs are built for, unless it is this one.
    pub fn other_machine(&self) -> Option<Architecture> {
        self.cross.as_ref().map(|cross| cross.architecture)
    }

    /// The architecture that programs are built for, as Rust calls it.
    pub fn architecture(&self) -> &'static str {
        self.other_machine()
            .map_or(env::consts::ARCH, Architecture::rust)
    }

    /// What programs are built for, as the compiler calls it.
    pub fn triple(&self) -> &str {
        &self.triple
    }

    /// What git says of the repository; `None` where it is none, or git isn't there.
    pub fn git(&self, arguments: &[&str]) -> Option<String> {
        let mut git = Command::new("git");
        process::probe(git.args(arguments).current_dir(&self.root))
    }

    /// The repository's revision, with a `+` where files differ from it; `unknown` where there is no git.
    pub fn revision(&self) -> String {
        let changed = self.git(&["status", "--porcelain", "--untracked-files=no"]);
        match self.git(&["rev-parse", "--short=12", "HEAD"]) {
            None => "unknown".to_owned(),
            Some(revision) if changed.is_some_and(|files| files.is_empty()) => revision,
            Some(revision) => revision + "+",
        }
    }

    /// A path in the repository.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// A path in the build output.
    pub fn target(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.target.join(relative)
    }

    /// `path` as a person in the repository would write it.
    pub fn display<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    /// The BPF programs as the agent carries them.
    pub fn bpf_object(&self) -> PathBuf {
        self.target("bpf/pendguard.bpf.o")
    }

    /// Those that run the parser for its test.
    pub fn bpf_cases(&self) -> PathBuf {
        self.target("bpf/cases.bpf.o")
    }

    /// Those that do nothing, for benchmarks.
    pub fn bpf_floor(&self) -> PathBuf {
        self.target("bpf/floor.bpf.o")
    }

    /// A cargo tool that setup installs.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.target("tools/bin").join(name)
    }

    /// The cargo command `verb`, in the repository, with the repository's toolchain.
    pub fn cargo(&self, verb: &str) -> Command {
        self.prepare(Command::new(Self::own_cargo()), verb)
    }

    /// The same, of another cargo.
    pub fn prepare(&self, mut cargo: Command, verb: &str) -> Command {
        cargo
            .arg(verb)
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        for name in RUSTFLAGS_VARS {
            cargo.env_remove(name);
        }
        cargo
    }

    /// [`Self::cargo`] with the profile, target and flags of the agent that is shipped.
    ///
    /// Every command on the agent's dependencies uses these, so that they are compiled once. Naming the target keeps the
    /// static-linking flag away from build scripts and procedural macros, which must stay dynamic.
    pub fn cargo_static(&self, verb: &str) -> Command {
        let mut command = self.cargo(verb);
        let mut flags = vec!["-C".to_owned(), "target-feature=+crt-static".to_owned()];
        if let Some(cross) = &self.cross {
            flags.extend(["-C".to_owned(), format!("linker={}", cross.linker)]);
            if let Some((rustc, sysroot)) = &cross.compiler {
                flags.extend(["--sysroot".to_owned(), sysroot.display().to_string()]);
                command.env("RUSTC", rustc);
            }
        }
        command.args(["--release", "--target", &self.triple, "--config"]);
        // A list of strings is written alike in Rust and in TOML.
        command.arg(format!("target.{}.rustflags={flags:?}", self.triple));
        // Named for every command, or the agent's build script would run again whenever it comes and goes.
        command.env("PENDGUARD_BPF_OBJ", self.bpf_object());
        command
    }

    /// The cargo that started this program.
    fn own_cargo() -> OsString {
        env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
    }

    /// Where [`Self::cargo_static`] leaves a program.
    pub fn static_output(&self, program: &str) -> PathBuf {
        self.target(&self.triple).join("release").join(program)
    }
}
