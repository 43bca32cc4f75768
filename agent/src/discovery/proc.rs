//! Processes as `/proc` shows them.
//!
//! For other users' `environ` it takes CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. Pids are those of the pid namespace that
//! `/proc` was mounted in, which must be the initial one: the programs know no other.

use std::io::{self, Read as _};

use procfs::process::{ProcState, Process};

/// The pids of all processes.
pub fn pids() -> io::Result<Vec<u32>> {
    Ok(std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Octets of an environment at most. A program can be started with 6 MiB of arguments and environment (`_STK_LIM / 4 * 3` in the kernel's
/// `fs/exec.c`), but one may move its environment to any part of its memory (`PR_SET_MM_MAP`), however large.
pub const MAX_ENVIRON: u64 = 6 * 1024 * 1024;

/// The environment that a process was started with: `NAME=value` strings, each ended by a NUL.
///
/// Empty, or an error, for a kernel thread and for a process that ended but was not waited for. An error where it is larger than
/// [`MAX_ENVIRON`].
pub fn environ(pid: u32) -> io::Result<Vec<u8>> {
    let environ = whole(&format!("/proc/{pid}/environ"));
    // Where its first thread has ended, it shows no memory: that is an error on newer kernels.
    let without_memory = match &environ {
        Ok(environ) => environ.is_empty(),
        Err(error) => is_gone(error),
    };
    if without_memory && let Some(environ) = of_another_thread(pid) {
        return Ok(environ);
    }
    environ
}

/// Whether an error of [`environ`] says no more than that there is no such process any more, or that it has no memory.
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Threads that are asked for their environment at most: one that is there has it, unless it ends just now.
const THREADS: usize = 8;

/// The environment as a thread shows it that goes on while the first one has ended.
fn of_another_thread(pid: u32) -> Option<Vec<u8>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    threads
        .flatten()
        .filter(|thread| thread.file_name().to_str() != Some(&pid.to_string()))
        .take(THREADS)
        .filter_map(|thread| whole(&format!("{}/environ", thread.path().display())).ok())
        .find(|environ| !environ.is_empty())
}

fn whole(path: &str) -> io::Result<Vec<u8>> {
    let environ = limited(path)?;
    // A process that runs another program meanwhile takes its memory away between two reads, and half an environment is
    // somebody else's. The next look finds the new program's.
    if environ.last().is_some_and(|last| *last != 0) {
        return limited(path);
    }
    Ok(environ)
}

/// Octets of `/proc/<pid>/cgroup` at most: a line for each hierarchy, of which there are some twenty, with a path.
const MAX_CGROUPS: u64 = 64 * 1024;

/// The cgroups that a process is in, a line for each hierarchy.
pub fn cgroups(pid: u32) -> io::Result<String> {
    let mut cgroups = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/cgroup"))?
        .take(MAX_CGROUPS)
        .read_to_end(&mut cgroups)?;
    // A cgroup may have any name; that of a pod is ASCII.
    Ok(String::from_utf8_lossy(&cgroups).into_owned())
}

fn limited(path: &str) -> io::Result<Vec<u8>> {
    let mut environ = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_ENVIRON + 1)
        .read_to_end(&mut environ)?;
    if environ.len() as u64 > MAX_ENVIRON {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {MAX_ENVIRON} octets"),
        ));
    }
    Ok(environ)
}

/// Whether a process has memory. One that ends has none any more, and its files are refused then (EACCES), as others' are.
pub fn has_memory(pid: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).and_then(|process| process.statm()).ok())
        .is_some_and(|memory| memory.size > 0)
}

/// Whether a process is there and runs. One whose first thread ended but others go on does.
pub fn runs(pid: u32) -> bool {
    let Ok(process) = i32::try_from(pid)
        .map_err(|_| ())
        .and_then(|pid| Process::new(pid).map_err(|_| ()))
    else {
        return false;
    };
    let ended = |state: procfs::ProcResult<ProcState>| {
        matches!(state, Err(_) | Ok(ProcState::Zombie | ProcState::Dead))
    };
    if !ended(process.stat().and_then(|stat| stat.state())) {
        return true;
    }
    process.tasks().is_ok_and(|tasks| {
        tasks
            .flatten()
            .any(|task| !ended(task.stat().and_then(|stat| stat.state())))
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn sees_this_process() {
        let me = std::process::id();
        assert!(pids().unwrap().contains(&me));
        assert!(runs(me));
        assert!(has_memory(me));
        let cgroups = cgroups(me).unwrap();
        assert!(cgroups.lines().all(|line| line.splitn(3, ':').count() == 3));
    }

    #[test]
    fn a_process_that_ended_does_not_run() {
        let mut child = Command::new("cat")
            .env("PENDGUARD_TEST", "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        assert!(runs(pid));
        // While a program begins, its environment is empty.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let environ = loop {
            let environ = environ(pid).unwrap();
            if !environ.is_empty() || std::time::Instant::now() > deadline {
                break environ;
            }
        };
        assert!(
            environ
                .split(|b| *b == 0)
                .any(|e| e == b"PENDGUARD_TEST=yes")
        );
        child.kill().unwrap();
        // Not waited for yet: it may be a zombie by now, and must be gone after the wait.
        child.wait().unwrap();
        assert!(!runs(pid));
        assert!(super::environ(pid).is_err());
    }

    #[test]
    fn no_such_process() {
        assert!(!runs(u32::MAX));
        assert!(environ(u32::MAX).is_err());
        assert!(cgroups(u32::MAX).is_err());
    }
}
