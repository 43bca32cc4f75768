//! `pendguard seccomp`.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::{complain, print};
use crate::cli::SeccompArgs;

/// What the agent, and `pendguard` in its container, may ask the kernel for: everything that either needs in any mode, and no `mount`, `setns` or
/// `ptrace`. Older runtimes' own profiles refuse `bpf` and `perf_event_open` to whoever lacks CAP_SYS_ADMIN.
///
/// In the form of the OCI's runtime specification, which containerd and CRI-O read alike. It names no architecture, so it is for the node's own.
pub const PROFILE: &str = include_str!("../seccomp/profile.json");

/// What a pod's `seccompProfile.localhostProfile` names.
pub const FILE: &str = "pendguard.json";

/// Why the profile could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("can't install the seccomp profile as {path}: {reason}")]
struct InstallError {
    path: PathBuf,
    reason: std::io::Error,
}

/// Prints the profile, or installs it. 0, or 1 if that fails.
pub fn run(arguments: &SeccompArgs) -> u8 {
    let Some(directory) = &arguments.install else {
        print(PROFILE);
        return 0;
    };
    match install(directory) {
        Ok(path) => {
            print(&format!("{}: installed\n", path.display()));
            0
        }
        Err(error) => {
            complain(&error.into());
            1
        }
    }
}

/// Puts it into the directory, whole or not at all: a kubelet may be about to read it.
fn install(directory: &Path) -> Result<PathBuf, InstallError> {
    let path = directory.join(FILE);
    let failed = |reason| InstallError {
        path: path.clone(),
        reason,
    };
    let partial = directory.join(format!(".{FILE}.{}", std::process::id()));
    let written = write(&partial).and_then(|()| fs::rename(&partial, &path));
    if let Err(reason) = written {
        let _ = fs::remove_file(&partial);
        return Err(failed(reason));
    }
    Ok(path)
}

fn write(path: &Path) -> std::io::Result<()> {
    // Left by one that was killed here, in a container in which pids repeat.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::File::create_new(path)?;
    file.write_all(PROFILE.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn allowed() -> BTreeSet<String> {
        let profile: Value = serde_json::from_str(PROFILE).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let mut names = BTreeSet::new();
        for rule in profile["syscalls"].as_array().unwrap() {
            if rule["action"] != "SCMP_ACT_ALLOW" {
                continue;
            }
            for name in rule["names"].as_array().unwrap() {
                assert!(
                    names.insert(name.as_str().unwrap().to_owned()),
                    "{name} twice"
                );
            }
        }
        names
    }

    #[test]
    fn the_profile_lets_through_what_the_agent_asks_for_and_nothing_that_leads_out() {
        let allowed = allowed();
        for name in [
            "bpf",
            "perf_event_open",
            "pidfd_open",
            "pidfd_getfd",
            "getrandom",
            "execve",
            "clone",
        ] {
            assert!(allowed.contains(name), "{name}");
        }
        for name in [
            "mount",
            "umount2",
            "move_mount",
            "setns",
            "unshare",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "init_module",
            "finit_module",
            "kexec_load",
            "open_by_handle_at",
            "mknod",
            "mknodat",
            "keyctl",
            "io_uring_setup",
        ] {
            assert!(!allowed.contains(name), "{name}");
        }
    }

    #[test]
    fn it_is_installed_over_an_older_one_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "old").unwrap();
        for _ in 0..2 {
            let path = install(directory.path()).unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), PROFILE);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn where_it_can_t_be_installed_the_path_is_named() {
        let error = install(Path::new("/nowhere/at/all"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nowhere/at/all/pendguard.json"), "{error}");
    }
}
