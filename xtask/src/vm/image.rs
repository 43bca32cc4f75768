//! The machine's disk: a file system with what the tests use of this machine, at the same paths as here.
//!
//! The paths are the same because some are compiled in (`CARGO_MANIFEST_DIR`) or written down (the interpreter of a
//! virtual environment). The machine may write to the disk; what it writes is thrown away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// Room on the disk for what the tests write.
const SPARE_BYTES: u64 = 256 << 20;

/// What a file takes beyond its content: the rest of its last block, its inode, its directory's entry.
const FILE_OVERHEAD: u64 = 6 << 10;

/// Directories that every machine has, empty or to mount something at.
const SKELETON: [&str; 7] = ["/dev", "/proc", "/root", "/run", "/sys", "/tmp", "/var/tmp"];

/// Parts of Python's library that no client uses, and that are large.
const LEFT_OUT: [&str; 8] = [
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "turtledemo",
    "pip",
];

/// What is at a path.
#[derive(Hash, PartialEq, Eq)]
enum Node {
    Directory,
    Link(PathBuf),
    File {
        /// The file on this machine, mostly of the same path.
        of: PathBuf,
        length: u64,
        changed: (i64, i64),
    },
}

/// A disk in the making.
#[derive(Default)]
pub struct Image {
    nodes: BTreeMap<PathBuf, Node>,
    /// Files of the machine's own, by path.
    texts: BTreeMap<PathBuf, String>,
}

impl Image {
    /// An empty disk but for what every machine has.
    pub fn new() -> Self {
        let mut image = Self::default();
        for path in SKELETON {
            image.directory(Path::new(path));
        }
        image.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        image.text("/etc/group", "root:x:0:\n");
        image.text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
        image
    }

    /// Adds a file of the machine's own.
    fn text(&mut self, path: &str, content: &str) {
        let path = PathBuf::from(path);
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.texts.insert(path, content.to_owned());
    }

    fn directory(&mut self, path: &Path) {
        for ancestor in path.ancestors() {
            self.nodes
                .entry(ancestor.to_path_buf())
                .or_insert(Node::Directory);
        }
    }

    /// Adds this machine's file or directory, with everything in it, and the links that lead there.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let path = self.resolve(path)?;
        let context = || path.display().to_string();
        let metadata = fs::symlink_metadata(&path).with_context(context)?;
        if metadata.is_dir() {
            self.directory(&path);
            for entry in fs::read_dir(&path).with_context(context)? {
                let entry = entry.with_context(context)?;
                if !LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                    self.add(&entry.path())?;
                }
            }
        } else if metadata.is_file() {
            let node = file(path.clone(), &metadata);
            self.nodes.insert(path, node);
        }
        Ok(())
    }

    /// Adds all that is in `root`, at the paths that it has there.
    pub fn add_root(&mut self, root: &Path) -> Result<()> {
        self.add_below(root, Path::new("/"))
    }

    fn add_below(&mut self, directory: &Path, at: &Path) -> Result<()> {
        let context = || directory.display().to_string();
        self.directory(at);
        for entry in fs::read_dir(directory).with_context(context)? {
            let entry = entry.with_context(context)?;
            let (path, at) = (entry.path(), at.join(entry.file_name()));
            let metadata = fs::symlink_metadata(&path).with_context(context)?;
            if metadata.is_dir() {
                if !LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                    self.add_below(&path, &at)?;
                }
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).with_context(context)?;
                self.nodes.insert(at, Node::Link(target));
            } else if metadata.is_file() {
                self.nodes.insert(at, file(path, &metadata));
            }
        }
        Ok(())
    }

    /// Adds the links on the way to `path`, and returns what they lead to.
    fn resolve(&mut self, path: &Path) -> Result<PathBuf> {
        let mut real = PathBuf::from("/");
        let mut rest: VecDeque<_> = components(path);
        let mut links = 0;
        while let Some(component) = rest.pop_front() {
            if component == ".." {
                real.pop();
                continue;
            }
            real.push(&component);
            let metadata = fs::symlink_metadata(&real)
                .with_context(|| format!("{} (for {})", real.display(), path.display()))?;
            if !metadata.is_symlink() {
                continue;
            }
            links += 1;
            ensure!(links < 40, "{}: too many links", path.display());
            let target = fs::read_link(&real).with_context(|| real.display().to_string())?;
            if let Some(parent) = real.parent() {
                let parent = parent.to_path_buf();
                self.directory(&parent);
            }
            self.nodes.insert(real.clone(), Node::Link(target.clone()));
            real.pop();
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            for component in components(&target).into_iter().rev() {
                rest.push_front(component);
            }
        }
        if let Some(parent) = real.parent() {
            self.directory(parent);
        }
        Ok(real)
    }

    /// Adds a program that is found by its name.
    pub fn add_program(&mut self, name: &str) -> Result<()> {
        let path = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("there is no program {name}"))?;
        self.add(&path)
    }

    /// Adds the libraries that the programs and libraries on the disk need.
    pub fn add_libraries(&mut self) -> Result<()> {
        let objects: Vec<_> = self
            .nodes
            .iter()
            .filter(|(path, node)| matches!(node, Node::File { .. }) && is_elf(path))
            .map(|(path, _)| path.clone())
            .collect();
        // It fails for static programs, and still answers for the others.
        let output = Command::new("ldd")
            .args(objects)
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .context("cannot start ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // `	libc.so.6 => /lib/libc.so.6 (0x7f…)`, `	/lib64/ld-linux-x86-64.so.2 (0x7f…)`
        let libraries: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix('\t')?.split(" (0x").next())
            .map(|line| line.rsplit(" => ").next().unwrap_or(line))
            .filter(|path| path.starts_with('/'))
            .collect();
        libraries
            .into_iter()
            .try_for_each(|library| self.add(Path::new(library)))
    }

    /// Writes the disk to `path`, unless that is what is there.
    pub fn write(&self, path: &Path) -> Result<()> {
        let stamp = path.with_extension("stamp");
        let fingerprint = self.fingerprint();
        if path.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == fingerprint) {
            return Ok(());
        }
        match fs::remove_file(&stamp) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| stamp.display().to_string());
            }
            _ => {}
        }
        // Another run may be at it too, or have a machine on the disk that is there.
        let staging = path.with_extension(format!("{}.staging", std::process::id()));
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let made = self
            .stage(&staging)
            .and_then(|()| self.make(&staging, &new));
        // Nothing to remove is what a failure may leave, and it is told below.
        let _ = fs::remove_dir_all(&staging);
        let renamed =
            made.and_then(|()| fs::rename(&new, path).with_context(|| new.display().to_string()));
        if renamed.is_err() {
            let _ = fs::remove_file(&new);
        }
        renamed?;
        fs::write(&stamp, fingerprint).with_context(|| stamp.display().to_string())
    }

    /// The tree, for mke2fs to read.
    fn stage(&self, staging: &Path) -> Result<()> {
        // Parents come before what is in them.
        for (path, node) in &self.nodes {
            let to = staging.join(path.strip_prefix("/").unwrap_or(path));
            match node {
                Node::Directory => fs::create_dir_all(&to),
                Node::Link(target) => symlink(target, &to),
                // A link costs nothing, where it is possible.
                Node::File { of, .. } => {
                    fs::hard_link(of, &to).or_else(|_| fs::copy(of, &to).map(|_| ()))
                }
            }
            .with_context(|| format!("{} to {}", path.display(), to.display()))?;
        }
        for (path, content) in &self.texts {
            let to = staging.join(path.strip_prefix("/").unwrap_or(path));
            // What is there may be a link to a file of this machine, which stays as it is.
            if self.nodes.contains_key(path) {
                fs::remove_file(&to).with_context(|| to.display().to_string())?;
            }
            fs::write(&to, content).with_context(|| to.display().to_string())?;
        }
        Ok(())
    }

    fn make(&self, staging: &Path, path: &Path) -> Result<()> {
        let content: u64 = self
            .nodes
            .values()
            .map(|node| match node {
                Node::File { length, .. } => length + FILE_OVERHEAD,
                Node::Directory | Node::Link(_) => FILE_OVERHEAD,
            })
            .sum();
        let mebibytes = (content + content / 10 + SPARE_BYTES) >> 20;
        let inodes = self.nodes.len() + 20_000;
        // It is in a directory that a user's PATH lacks.
        let program = ["/usr/sbin/mke2fs", "/sbin/mke2fs"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap_or("mke2fs");
        let mut mke2fs = Command::new(program);
        mke2fs
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
            .args(["-N", &inodes.to_string(), "-d"])
            .arg(staging)
            .arg(path)
            .arg(format!("{mebibytes}M"));
        process::stdout(&mut mke2fs)?;
        Ok(())
    }

    /// Changes when anything on the disk does. It is compared on one machine only, so any hash will do.
    fn fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.nodes.hash(&mut hasher);
        self.texts.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

fn file(of: PathBuf, metadata: &fs::Metadata) -> Node {
    Node::File {
        of,
        length: metadata.len(),
        changed: (metadata.mtime(), metadata.mtime_nsec()),
    }
}

/// The names in a path, and `..`.
fn components(path: &Path) -> VecDeque<std::ffi::OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_added_as_it_lies() -> Result<()> {
        let root = std::env::temp_dir().join(format!("xtask-root-{}", std::process::id()));
        fs::create_dir_all(root.join("usr/bin"))?;
        fs::write(root.join("usr/bin/sh"), "a shell")?;
        symlink("usr/bin", root.join("bin"))?;
        let mut image = Image::default();
        image.add_root(&root)?;
        fs::remove_dir_all(&root)?;
        let node = |path: &str| image.nodes.get(Path::new(path));
        assert!(matches!(node("/bin"), Some(Node::Link(to)) if to == Path::new("usr/bin")));
        assert!(
            matches!(node("/usr/bin/sh"), Some(Node::File { of, length: 7, .. }) if *of == root.join("usr/bin/sh"))
        );
        Ok(())
    }

    #[test]
    fn links_on_the_way_are_kept() -> Result<()> {
        let directory = std::env::temp_dir().join(format!("xtask-image-{}", std::process::id()));
        fs::create_dir_all(directory.join("real/deep"))?;
        fs::write(directory.join("real/deep/file"), "content")?;
        let _ = fs::remove_file(directory.join("way"));
        symlink("real/../real", directory.join("way"))?;
        let mut image = Image::default();
        image.add(&directory.join("way/deep/file"))?;
        fs::remove_dir_all(&directory)?;
        assert!(matches!(
            image.nodes.get(&directory.join("way")),
            Some(Node::Link(_))
        ));
        assert!(matches!(
            image.nodes.get(&directory.join("real/deep/file")),
            Some(Node::File { length: 7, .. })
        ));
        Ok(())
    }
}
