//! The OCI image that `cargo xtask image` has built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::peers::target_directory;

/// The image, unpacked.
pub struct Image {
    directory: TempDir,
    /// What it says of itself.
    pub config: Value,
}

/// Where its archive is.
fn archive() -> PathBuf {
    target_directory().join("image/pendguard.oci.tar")
}

impl Image {
    /// Unpacks the archive and all layers.
    ///
    /// # Errors
    /// There is none, or it is no image.
    pub fn unpack() -> Result<Self> {
        let archive = archive();
        ensure!(
            archive.exists(),
            "{} is missing: run `cargo xtask image`",
            archive.display()
        );
        let directory = tempfile::tempdir()?;
        let (layout, root) = (
            directory.path().join("layout"),
            directory.path().join("root"),
        );
        untar(&archive, &layout)?;
        let manifest = blob(&layout, &json(&layout.join("index.json"))?["manifests"][0])?;
        let manifest = json(&manifest)?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            untar(&blob(&layout, layer)?, &root)?;
        }
        let config = json(&blob(&layout, &manifest["config"])?)?["config"].clone();
        Ok(Self { directory, config })
    }

    /// The root of its file tree.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Every file in it, by its path from the root.
    ///
    /// # Errors
    /// It can't be read.
    pub fn files(&self) -> Result<Vec<String>> {
        let mut files = Vec::new();
        let mut next = vec![self.root()];
        while let Some(directory) = next.pop() {
            for entry in std::fs::read_dir(&directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    next.push(path);
                    continue;
                }
                let path = path.strip_prefix(self.root())?;
                files.push(path.display().to_string());
            }
        }
        files.sort();
        Ok(files)
    }

    /// Octets of the archive.
    ///
    /// # Errors
    /// It is gone.
    pub fn size() -> Result<u64> {
        Ok(std::fs::metadata(archive())?.len())
    }
}

fn untar(archive: &Path, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let output = Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(directory)
        .output()?;
    ensure!(
        output.status.success(),
        "{}: {}",
        archive.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The file that a descriptor names.
fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("no digest")?;
    let (algorithm, hash) = digest.split_once(':').context("no digest")?;
    Ok(layout.join("blobs").join(algorithm).join(hash))
}

fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}
