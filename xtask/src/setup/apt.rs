//! Debian's packages.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::step::Job;
use crate::process;

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
}

/// Where Debian's keys lie, for those releases of it too that aren't this machine's.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Lists {
    /// The machine's own.
    pub fn of_machine() -> Self {
        Self::default()
    }

    /// Those of other releases of Debian (`suites`), from the mirror that this machine uses. They lie in `state`, apart from the machine's
    /// own, and are fetched anew where they are older than `age`.
    pub fn of_suites(state: &Path, suites: &[&str], age: Duration) -> Result<Self> {
        let directory = |name: &str| {
            let directory = state.join(name);
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            Ok::<_, anyhow::Error>(directory)
        };
        let lists = directory("lists")?;
        directory("lists/partial")?;
        let cache = directory("cache")?;
        directory("cache/archives/partial")?;
        let mirror = mirror()?;
        let text: String = suites
            .iter()
            .map(|suite| format!("deb [signed-by={KEYS}] {mirror} {suite} main\n"))
            .collect();
        let sources = state.join("sources.list");
        let options = [
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", lists.display()),
            format!("Dir::Cache={}", cache.display()),
            // Nothing but packages: no translations, no contents, no metadata of applications.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
        ];
        let these = Self {
            options: options.into(),
        };
        // Written last, so that its age is the lists'.
        let fresh = fs::metadata(&sources)
            .and_then(|it| it.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed < age));
        if !fresh || fs::read_to_string(&sources).ok().as_ref() != Some(&text) {
            let write =
                || fs::write(&sources, &text).with_context(|| sources.display().to_string());
            write()?;
            let updated = process::stdout(these.command("apt-get").arg("update"));
            if let Err(error) = updated {
                fs::remove_file(&sources).with_context(|| sources.display().to_string())?;
                return Err(error).with_context(|| format!("lists of {}", suites.join(", ")));
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

/// The mirror that this machine has its own release of Debian from.
fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no VERSION_CODENAME")?;
    let targets = process::stdout(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(RELEASE) $(SITE)",
        "Created-By: Packages",
    ]))?;
    targets
        .lines()
        .find_map(|line| line.strip_prefix(codename)?.strip_prefix(' '))
        .map(str::to_owned)
        .with_context(|| format!("apt has no source for {codename}"))
}
