//! Debian's packages.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::step::Job;
use crate::architecture::Architecture;
use crate::process;
use crate::workspace::Workspace;

/// How long to wait for another apt to finish.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=300";

/// A Debian machine on which this user may install packages.
pub struct Apt {
    /// Not root: through sudo.
    sudo: bool,
    /// The package lists were brought up to date by this run.
    updated: Cell<bool>,
}

impl Apt {
    /// Whether this machine is one.
    pub fn detect() -> Option<Self> {
        if !Path::new("/etc/debian_version").exists() {
            return None;
        }
        process::probe(Command::new("apt-get").arg("--version"))?;
        let sudo = !rustix::process::geteuid().is_root();
        if sudo {
            process::probe(Command::new("sudo").arg("--version"))?;
        }
        Some(Self {
            sudo,
            updated: Cell::new(false),
        })
    }

    /// Those of `packages` that are not installed.
    pub fn missing<'a>(&self, packages: &[&'a str]) -> Result<Vec<&'a str>> {
        // dpkg-query fails when it doesn't know one of the names, and still answers for the others.
        let output = Command::new("dpkg-query")
            .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
            .args(packages)
            .output()
            .context("cannot start dpkg-query")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let installed: HashSet<_> = text
            .lines()
            .filter_map(|line| line.strip_suffix(" installed"))
            .collect();
        Ok(packages
            .iter()
            .copied()
            .filter(|package| !installed.contains(package))
            .collect())
    }

    /// Whether the package lists, as they are, offer `package`.
    pub fn offers(&self, package: &str) -> bool {
        process::probe(Command::new("apt-cache").args(["policy", package]))
            .and_then(|text| {
                let candidate = process::field(&text.replace("  ", ""), "Candidate")?.to_owned();
                Some(candidate != "(none)")
            })
            .unwrap_or(false)
    }

    /// Brings the package lists up to date, once per run.
    pub fn update(&self, job: &Job<'_>) -> Result<()> {
        if self.updated.replace(true) {
            return Ok(());
        }
        // A single unreachable source fails the update and need not concern the packages asked for.
        if let Err(error) = job.run(self.command(job)?.arg("update")) {
            job.say(format_args!(
                "going on with the package lists as they are: {error:#}"
            ));
        }
        Ok(())
    }

    /// Installs `packages`.
    pub fn install(&self, job: &Job<'_>, packages: &[&str]) -> Result<()> {
        self.update(job)?;
        let mut command = self.command(job)?;
        command
            .args([
                "install",
                "--yes",
                "--no-install-recommends",
                "-o",
                LOCK_TIMEOUT,
            ])
            .args(packages);
        job.run(&mut command)
    }

    fn command(&self, job: &Job<'_>) -> Result<Command> {
        const QUIET: &str = "DEBIAN_FRONTEND=noninteractive";
        if self.sudo {
            // The password is asked for here: the command itself runs with its output kept out of sight.
            job.ask(Command::new("sudo").arg("--validate"))?;
            let mut command = Command::new("sudo");
            command.args([QUIET, "apt-get"]);
            return Ok(command);
        }
        let mut command = Command::new("env");
        command.args([QUIET, "apt-get"]);
        Ok(command)
    }
}

/// Lists of packages.
#[derive(Debug, Default)]
pub struct Lists {
    /// What apt is told so that it takes these lists.
    options: Vec<String>,
    /// Where they lie, if they aren't the machine's own.
    state: Option<PathBuf>,
}

/// How old lists may be that aren't the machine's own.
const LISTS_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where Debian's keys lie, for those releases of it too that aren't this machine's.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Lists {
    /// The machine's own.
    pub fn of_machine() -> Self {
        Self::default()
    }

    /// Those of another release of Debian, from the mirror that this machine uses.
    pub fn of_suite(workspace: &Workspace, suite: &str) -> Result<Self> {
        let codename = codename()?;
        let mirrors = mirrors(&codename)?;
        let mirror = mirrors.iter().find(|(suite, _)| *suite == codename);
        let (_, mirror) = mirror.with_context(|| format!("apt has no source for {codename}"))?;
        let sources = [(suite.to_owned(), mirror.clone())];
        Self::apart(&workspace.target(format!("vm/apt/{suite}")), &sources, None)
    }

    /// Those of this machine's own release, updates of it and all, for another architecture.
    pub fn of_architecture(workspace: &Workspace, architecture: Architecture) -> Result<Self> {
        let codename = codename()?;
        let sources = mirrors(&codename)?;
        ensure!(!sources.is_empty(), "apt has no source for {codename}");
        let state = workspace.target(format!("vm/apt/{}", architecture.debian()));
        Self::apart(&state, &sources, Some(architecture))
    }

    /// Those of `sources` (suites and where they are). They lie in `state`, apart from the machine's own, and are fetched anew where they
    /// are old.
    fn apart(
        state: &Path,
        sources: &[(String, String)],
        architecture: Option<Architecture>,
    ) -> Result<Self> {
        let directory = |name: &str| {
            let directory = state.join(name);
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            Ok::<_, anyhow::Error>(directory)
        };
        let lists = directory("lists")?;
        directory("lists/partial")?;
        let cache = directory("cache")?;
        directory("cache/archives/partial")?;
        let text: String = sources
            .iter()
            .map(|(suite, mirror)| format!("deb [signed-by={KEYS}] {mirror} {suite} main\n"))
            .collect();
        let file = state.join("sources.list");
        let mut options = vec![
            format!("Dir::Etc::SourceList={}", file.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", lists.display()),
            format!("Dir::Cache={}", cache.display()),
            // Nothing but packages: no translations, no contents, no metadata of applications.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
        ];
        if let Some(architecture) = architecture {
            for name in ["APT::Architecture", "APT::Architectures"] {
                options.push(format!("{name}={}", architecture.debian()));
            }
        }
        let these = Self {
            options,
            state: Some(state.to_owned()),
        };
        // Written last, so that its age is the lists'.
        let fresh = fs::metadata(&file)
            .and_then(|it| it.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed < LISTS_AGE));
        if !fresh || fs::read_to_string(&file).ok().as_ref() != Some(&text) {
            let write = || fs::write(&file, &text).with_context(|| file.display().to_string());
            write()?;
            let updated = process::stdout(these.command("apt-get").arg("update"));
            if let Err(error) = updated {
                fs::remove_file(&file).with_context(|| file.display().to_string())?;
                return Err(error).with_context(|| format!("lists in {}", state.display()));
            }
            write()?;
        }
        Ok(these)
    }

    /// The names of packages that begin with `prefix`, a line each.
    pub fn names(&self, prefix: &str) -> Result<String> {
        process::stdout(self.command("apt-cache").args(["pkgnames", prefix]))
    }

    /// Downloads a package and unpacks it to a directory of its name in `into`; nothing is installed. apt checks what it downloads against
    /// the signed lists.
    pub fn unpack(&self, into: &Path, package: &str) -> Result<()> {
        // Unpacked elsewhere and renamed, so that a directory is there in full or not at all.
        let work = into.join(format!(".{package}"));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
        process::stdout(
            self.command("apt-get")
                .args(["download", package])
                .current_dir(&work),
        )?;
        let deb = fs::read_dir(&work)
            .with_context(|| work.display().to_string())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .context("apt-get downloaded nothing")?;
        let unpacked = work.join("unpacked");
        process::stdout(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
        fs::rename(&unpacked, into.join(package)).context("renaming what was unpacked")?;
        fs::remove_dir_all(&work).with_context(|| work.display().to_string())
    }

    /// The same for several packages and all that they need, together in the directory `into`, as they would lie in the root of a machine.
    pub fn unpack_all(&self, into: &Path, packages: &[&str]) -> Result<()> {
        let state = self.state.as_ref();
        let state = state.context("these lists are of a machine that has packages")?;
        // Nothing is there, so everything is needed.
        let status = state.join("status");
        fs::write(&status, "").with_context(|| status.display().to_string())?;
        let mut apt = self.command("apt-get");
        apt.arg("-o")
            .arg(format!("Dir::State::status={}", status.display()));
        process::stdout(apt.arg("clean"))?;
        let mut apt = self.command("apt-get");
        apt.arg("-o")
            .arg(format!("Dir::State::status={}", status.display()))
            .args(["install", "--yes", "--no-install-recommends"])
            .arg("--download-only");
        process::stdout(apt.args(packages))?;
        let work = into.with_extension("partial");
        let _ = fs::remove_dir_all(&work);
        // As Debian's installer does: /bin and others are in /usr.
        for name in ["bin", "sbin", "lib"] {
            let there = work.join("usr").join(name);
            fs::create_dir_all(&there).with_context(|| there.display().to_string())?;
            symlink(format!("usr/{name}"), work.join(name)).context(name)?;
        }
        let archives = state.join("cache/archives");
        let entries = fs::read_dir(&archives).with_context(|| archives.display().to_string())?;
        for entry in entries {
            let path = entry
                .with_context(|| archives.display().to_string())?
                .path();
            if path.extension().is_some_and(|e| e == "deb") {
                process::stdout(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&work))?;
            }
        }
        fs::rename(&work, into).with_context(|| into.display().to_string())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // As root apt would become a user who can't write here, and warn when it finds that out.
        command.args(["-o", "APT::Sandbox::User=root"]);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// The name of this machine's release of Debian.
fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(str::to_owned)
        .context("/etc/os-release names no VERSION_CODENAME")
}

/// Where this machine has its own release of Debian from, and updates of it: suites, and the mirror of each.
fn mirrors(codename: &str) -> Result<Vec<(String, String)>> {
    let targets = process::stdout(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(RELEASE) $(SITE)",
        "Created-By: Packages",
    ]))?;
    let mut mirrors = Vec::new();
    for line in targets.lines() {
        // Others may name their suites after Debian's.
        let Some((suite, site)) = line
            .strip_prefix("Debian ")
            .and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        let own = suite
            .strip_prefix(codename)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        let mirror = (suite.to_owned(), site.to_owned());
        // One for each of a suite's components.
        if own && !mirrors.contains(&mirror) {
            mirrors.push(mirror);
        }
    }
    Ok(mirrors)
}
