//! What is linked into the agent that cargo doesn't know: Rust's standard library, and of this machine glibc and GCC's support library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::process;
use crate::workspace::Workspace;

/// Archives of the machine that go into a static program, by what the compiler calls them.
const ARCHIVES: [Archive; 2] = [
    Archive {
        file: "libc.a",
        name: "glibc",
        licence: "LGPL-2.1-or-later",
    },
    Archive {
        file: "libgcc_eh.a",
        name: "libgcc",
        licence: "GPL-3.0-or-later WITH GCC-exception-3.1",
    },
];

struct Archive {
    file: &'static str,
    name: &'static str,
    licence: &'static str,
}

/// A part of the program.
pub struct Part {
    /// As the bill of materials has it.
    pub component: Value,
    /// Whose it is and on which terms, in the words of who has packaged it: to go with the program under this name.
    pub notice: Option<(String, PathBuf)>,
}

/// All of them.
pub fn parts(workspace: &Workspace) -> Result<Vec<Part>> {
    let mut parts = vec![standard_library(workspace)?];
    for archive in ARCHIVES {
        let name = archive.name;
        parts.push(of_machine(&archive).with_context(|| format!("whose {name} is linked"))?);
    }
    Ok(parts)
}

fn component(name: &str, version: &str, licence: &str, reference: &str) -> Value {
    json!({
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
        "licenses": [{"expression": licence}],
    })
}

/// The compiler's own library is of the same release.
fn standard_library(workspace: &Workspace) -> Result<Part> {
    let mut rustc = Command::new("rustc");
    let said = process::stdout(rustc.arg("-vV").current_dir(workspace.path("")))?;
    let field = |name| {
        let lines = said.lines();
        let value = lines
            .filter_map(|line| line.split_once(": "))
            .find(|it| it.0 == name);
        value.with_context(|| format!("rustc doesn't say its {name}: {said}"))
    };
    let (_, version) = field("release")?;
    let (_, commit) = field("commit-hash")?;
    let reference = format!("pkg:github/rust-lang/rust@{commit}");
    Ok(Part {
        component: component("rust-std", version, "MIT OR Apache-2.0", &reference),
        notice: None,
    })
}

/// Of which package of Debian's an archive is.
fn of_machine(archive: &Archive) -> Result<Part> {
    let asked = format!("-print-file-name={}", archive.file);
    let path = process::stdout(Command::new("cc").arg(asked))?;
    // A name that the compiler doesn't know comes back as it is.
    let path = fs::canonicalize(&path).with_context(|| path.clone())?;
    let owner = process::stdout(Command::new("dpkg-query").arg("--search").arg(&path))?;
    let (package, _) = owner.split_once(": ").with_context(|| owner.clone())?;
    let format = "${source:Package} ${source:Version}";
    let source =
        process::stdout(Command::new("dpkg-query").args(["--show", "-f", format, package]))?;
    let (source, version) = source.split_once(' ').with_context(|| source.clone())?;
    let reference = format!("pkg:deb/debian/{source}@{version}?arch=source");
    let plain = package.split(':').next().unwrap_or(package);
    let notice = Path::new("/usr/share/doc").join(plain).join("copyright");
    Ok(Part {
        component: component(archive.name, version, archive.licence, &reference),
        notice: Some((format!("NOTICE-{}", archive.name), notice)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_libraries_are_linked_here() -> Result<()> {
        let workspace = Workspace::locate()?;
        for part in parts(&workspace)? {
            let version = part.component["version"].as_str().unwrap_or_default();
            assert!(
                version.starts_with(|first: char| first.is_ascii_digit()),
                "{}",
                part.component
            );
            if let Some((_, notice)) = part.notice {
                assert!(fs::metadata(&notice)?.len() > 0, "{}", notice.display());
            }
        }
        Ok(())
    }
}
