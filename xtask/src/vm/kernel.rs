//! Debian's kernels, out of its packages: nothing is installed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

use crate::architecture::Architecture;
use crate::progress::Progress;
use crate::setup::Lists;
use crate::workspace::Workspace;

/// The kernels that are known, as the user names them. All are Debian's for cloud machines: small, with everything that
/// a node's kernel has.
const SERIES: [Series; 6] = [
    Series {
        suite: Some("bullseye"),
        refused: true,
        // Its disk needs modules, and when it is locked down it loads signed ones alone.
        ..of_machine("5.10", &[("linux-image-5.10.", "-cloud-amd64")])
    },
    of_machine("6.1", &[("linux-image-6.1.", "-cloud-amd64-unsigned")]),
    of_machine("6.12", &[("linux-image-6.12.", "-cloud-amd64-unsigned")]),
    Series {
        suite: Some("sid"),
        // Programs of tracepoints are preempted there, and the gate's holds are such.
        gate: false,
        ..of_machine(
            "7.2",
            &[
                ("linux-binary-7.2.", "-cloud-amd64"),
                ("linux-modules-7.2.", "-cloud-amd64"),
            ],
        )
    },
    Series {
        architecture: Architecture::Aarch64,
        // The kernel's functions call no program there before 6.4.
        fentry: false,
        ..of_machine(
            "6.1-arm64",
            &[("linux-image-6.1.", "-cloud-arm64-unsigned")],
        )
    },
    Series {
        architecture: Architecture::Aarch64,
        ..of_machine(
            "6.12-arm64",
            &[("linux-image-6.12.", "-cloud-arm64-unsigned")],
        )
    },
];

/// A series of this machine's own release.
const fn of_machine(
    name: &'static str,
    packages: &'static [(&'static str, &'static str)],
) -> Series {
    Series {
        name,
        architecture: Architecture::X86_64,
        suite: None,
        refused: false,
        fentry: true,
        gate: true,
        packages,
    }
}

/// Those that `cargo xtask test` boots.
const CHECKED: [&str; 2] = ["6.1", "6.12"];

/// What the machine needs of its kernel to find its disk and the port to the host; a kernel that has one of them built in
/// needs no module for it.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "ext4"];

/// How Debian names the packages of a series.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    /// As the user writes it.
    pub name: &'static str,
    /// The machine that it is for.
    pub architecture: Architecture,
    /// The release that has it, where this machine's own doesn't.
    suite: Option<&'static str>,
    /// Whether it is one that the agent refuses: all that there is to test is that it says so.
    pub refused: bool,
    /// Whether programs can hang on its functions; where they can't, `doctor` is the test that the agent says so.
    pub fentry: bool,
    /// Whether the gate is safe there; where it isn't, `doctor` is the test that the agent says so.
    pub gate: bool,
    /// What the packages' names begin and end with: of the one that has the kernel, and then of others.
    packages: &'static [(&'static str, &'static str)],
}

impl Series {
    /// The series of this name.
    pub fn named(name: &str) -> Result<Self, String> {
        SERIES
            .into_iter()
            .find(|series| series.name == name)
            .ok_or_else(|| {
                let names = SERIES.map(|series| series.name);
                format!("no such kernel here; there are {}", names.join(", "))
            })
    }

    /// The lists that have its packages.
    fn lists(&self, workspace: &Workspace) -> Result<Lists> {
        match self.suite {
            Some(suite) => Lists::of_suite(workspace, suite),
            None if self.architecture.is_own() => Ok(Lists::of_machine()),
            None => Lists::of_architecture(workspace, self.architecture),
        }
    }
}

/// The newest package of these names that begins and ends so.
fn newest(names: &str, (prefix, suffix): (&str, &str)) -> Option<String> {
    names
        .lines()
        .filter(|name| name.starts_with(prefix) && name.ends_with(suffix))
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
}

/// Those that `cargo xtask test` boots.
pub fn checked() -> Vec<Series> {
    SERIES
        .into_iter()
        .filter(|series| CHECKED.contains(&series.name))
        .collect()
}

/// The names of those that run if the user names none: this machine's own architecture.
pub fn own_names() -> Vec<&'static str> {
    SERIES
        .iter()
        .filter(|series| series.architecture.is_own())
        .map(|series| series.name)
        .collect()
}

/// The numbers in a package's name, by which versions are ordered.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// A kernel, unpacked.
#[derive(Debug)]
pub struct Kernel {
    pub series: Series,
    /// `uname -r`.
    pub release: String,
    /// The kernel itself.
    pub image: PathBuf,
    /// All of its modules, by name.
    modules: HashMap<String, PathBuf>,
}

impl Kernel {
    /// Fetches the newest kernel of a series, unless it is there.
    pub fn fetch(workspace: &Workspace, series: Series, progress: &Progress) -> Result<Self> {
        let all = workspace.target("vm/kernels");
        fs::create_dir_all(&all).with_context(|| all.display().to_string())?;
        let lists = series
            .lists(workspace)
            .context("kernels come as Debian's packages, through apt")?;
        let mut directories = Vec::new();
        for (prefix, suffix) in series.packages {
            let names = lists.names(prefix)?;
            let package = newest(&names, (prefix, suffix)).with_context(|| {
                format!("apt offers no package {prefix}*{suffix}: are its lists up to date?")
            })?;
            let directory = all.join(&package);
            if !directory.exists() {
                progress.live(&format!("downloading {package}"));
                lists.unpack(&all, &package)?;
            }
            directories.push(directory);
        }
        Self::in_directories(series, &directories)
            .with_context(|| format!("the kernel in {}", directories[0].display()))
    }

    fn in_directories(series: Series, directories: &[PathBuf]) -> Result<Self> {
        // Debian 13 and later have /lib in /usr.
        let within = |places: [&'static str; 2]| {
            directories
                .iter()
                .flat_map(move |directory| places.map(|place| directory.join(place)))
                .filter(|place| place.is_dir())
        };
        let mut image = None;
        for boot in within(["boot", "usr/boot"]) {
            image = image.or(entries(&boot)?.into_iter().find_map(|path| {
                let release = path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
                Some((path.clone(), release.to_owned()))
            }));
        }
        let mut modules = HashMap::new();
        for tree in within(["lib/modules", "usr/lib/modules"]) {
            for of_release in entries(&tree)? {
                // Later packages have the kernel beside its modules.
                let beside = of_release.join("vmlinuz");
                if beside.exists() && image.is_none() {
                    let release = of_release.file_name().context("no release")?;
                    image = Some((beside, release.to_string_lossy().into_owned()));
                }
                collect(&of_release, &mut modules)?;
            }
        }
        let (image, release) = image.context("no vmlinuz")?;
        ensure!(!modules.is_empty(), "no modules");
        Ok(Self {
            series,
            release,
            image,
            modules,
        })
    }

    /// The modules that the machine needs, each after those that it needs itself: name and content.
    pub fn needed_modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order = Vec::new();
        for name in MODULES {
            self.add(name, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let Some(path) = self.modules.get(name) else {
            // Built in.
            return Ok(());
        };
        if order.iter().any(|(there, _)| there == name) {
            return Ok(());
        }
        let content = read_module(path)?;
        for needed in dependencies(&content).with_context(|| path.display().to_string())? {
            self.add(&needed, order)?;
        }
        order.push((name.to_owned(), content));
        Ok(())
    }
}

/// All modules below `directory`. A module's name has an underscore where its file may have a hyphen.
fn collect(directory: &Path, modules: &mut HashMap<String, PathBuf>) -> Result<()> {
    for path in entries(directory)? {
        if path.is_dir() {
            collect(&path, modules)?;
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some((name, _)) = name.split_once(".ko") {
            modules.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = || directory.display().to_string();
    fs::read_dir(directory)
        .with_context(context)?
        .map(|entry| Ok(entry.with_context(context)?.path()))
        .collect()
}

/// A module, unpacked: not every kernel unpacks them itself.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|e| e == "ko") {
        return fs::read(path).with_context(|| path.display().to_string());
    }
    ensure!(
        path.extension().is_some_and(|e| e == "xz"),
        "{}: compressed in an unknown way",
        path.display()
    );
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot start xz")?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// The modules that this one needs, as it says itself. depmod, which makes a list of it, runs when a kernel is installed.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("not a module")?;
    let info = file.section_by_name(".modinfo").context("no .modinfo")?;
    let info = info.data().context(".modinfo")?;
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(depends)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number() {
        let names = "linux-image-6.1.0-9-cloud-amd64-unsigned\n\
                     linux-image-6.1.0-56-cloud-amd64-unsigned\n\
                     linux-image-6.1.0-57-cloud-amd64-dbg\n\
                     linux-image-6.12.99+deb12-cloud-amd64-unsigned\n\
                     linux-image-6.12.117+deb12-cloud-amd64-unsigned\n";
        let newest = |name| {
            let series = Series::named(name).expect("it is known");
            newest(names, series.packages[0])
        };
        assert_eq!(
            newest("6.1").as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64-unsigned")
        );
        assert_eq!(
            newest("6.12").as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64-unsigned")
        );
        assert!(Series::named("2.4").is_err());
    }
}
