//! Finds the source's end of a connection.
//!
//! `unix_diag` sees its own network namespace only, and every pod has one of its own. So the sockets are looked at where they
//! are: in the processes, by `pidfd_getfd` (5.6; CAP_SYS_PTRACE). A duplicate keeps a connection open, so none is kept
//! longer than it takes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Descriptors of one process that are looked at, at most.
const DESCRIPTORS: usize = 4096;

/// A process whose descriptors can be duplicated.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// Opens a process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::other("no such pid"))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    /// A duplicate of one of its descriptors.
    pub fn descriptor(&self, fd: u32) -> io::Result<OwnedFd> {
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        Ok(pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty())?)
    }

    /// Its descriptors that are sockets.
    fn sockets(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid))?.take(DESCRIPTORS) {
            let entry = entry?;
            let is_socket =
                std::fs::read_link(entry.path()).is_ok_and(|target| is_socket_link(&target));
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let (true, Some(number)) = (is_socket, number) {
                found.push(number);
            }
        }
        Ok(found)
    }
}

/// Whether a process's descriptor is a socket. Nothing is opened for it.
pub fn is_socket(pid: u32, fd: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|target| is_socket_link(&target))
}

/// Whether a descriptor's link leads to a socket.
fn is_socket_link(target: &Path) -> bool {
    target.as_os_str().as_bytes().starts_with(b"socket:")
}

/// What kind of socket a client's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A Unix stream socket.
    Unix,
    /// Another one.
    Other,
}

/// The kind of a client's socket.
pub fn transport(socket: &OwnedFd) -> io::Result<Transport> {
    let unix = sockopt::socket_domain(socket)? == AddressFamily::UNIX
        && sockopt::socket_type(socket)? == SocketType::STREAM;
    Ok(if unix {
        Transport::Unix
    } else {
        Transport::Other
    })
}

/// The accepted ends of all connections that process `client` has open to whoever listens where `socket`, one of its Unix sockets,
/// leads. It may be empty: not accepted yet, or in a process that can't be seen.
pub fn accepted(client: u32, socket: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    // Of a connected client, the credentials are those of the process that called `listen`.
    let listener = peer(socket)?;
    let ends = ends(listener, client)?;
    if !ends.is_empty() {
        return Ok(ends);
    }
    // A server that forked after it listened: look at all that share the listener's network namespace, as the containers of
    // a pod do.
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let Some(home) = namespace(listener).or_else(|| namespace(client)) else {
        return Ok(Vec::new());
    };
    for pid in crate::discovery::proc::pids()? {
        if pid == listener || pid == client || namespace(pid).as_ref() != Some(&home) {
            continue;
        }
        // Processes come and go.
        if let Ok(ends) = self::ends(pid, client)
            && !ends.is_empty()
        {
            return Ok(ends);
        }
    }
    Ok(Vec::new())
}

/// The sockets of process `pid` whose other end `client` opened.
fn ends(pid: u32, client: u32) -> io::Result<Vec<OwnedFd>> {
    let process = Process::open(pid)?;
    let mut found = Vec::new();
    for fd in process.sockets()? {
        let Ok(socket) = process.descriptor(fd) else {
            continue;
        };
        if is_end(&socket, client).unwrap_or(false) {
            found.push(socket);
        }
    }
    Ok(found)
}

fn is_end(socket: &OwnedFd, client: u32) -> io::Result<bool> {
    Ok(transport(socket)? == Transport::Unix
        && !sockopt::socket_acceptconn(socket)?
        && peer(socket)? == client
        && !is_left(socket)?)
}

/// Whether the other end has been closed. A server keeps such an end until it has read to its end.
fn is_left(socket: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default()))?;
    Ok(fds[0].revents().contains(PollFlags::HUP))
}

/// The process at the other end (`SO_PEERCRED`); 0: none, or none that can be seen from here.
fn peer(socket: &OwnedFd) -> io::Result<u32> {
    // By hand: rustix has a type for it in which 0 can't be.
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers lead to live values, and `len` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(credentials.pid).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_accepted_end_is_found_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let me = std::process::id();
        let socket = Process::open(me).unwrap().descriptor(raw(&client)).unwrap();
        assert_eq!(transport(&socket).unwrap(), Transport::Unix);
        let cookie = |s: &OwnedFd| sockopt::socket_cookie(s).unwrap();
        assert_eq!(cookie(&socket), sockopt::socket_cookie(&client).unwrap());
        let before: Vec<_> = accepted(me, &socket).unwrap().iter().map(cookie).collect();
        let (accepted_end, _) = listener.accept().unwrap();
        let end = sockopt::socket_cookie(&accepted_end).unwrap();
        assert!(!before.contains(&end), "not accepted yet");
        let after = accepted(me, &socket).unwrap();
        assert!(after.iter().any(|s| cookie(s) == end));
        let listening = sockopt::socket_cookie(&listener).unwrap();
        assert!(after.iter().all(|s| cookie(s) != listening));
        // The client closes it; the server has not.
        drop((client, socket, after));
        let other = UnixStream::connect(&path).unwrap();
        let socket = Process::open(me).unwrap().descriptor(raw(&other)).unwrap();
        let left = accepted(me, &socket).unwrap();
        assert!(left.iter().all(|s| cookie(s) != end));
    }

    fn raw(stream: &UnixStream) -> u32 {
        use std::os::fd::AsRawFd as _;
        stream.as_raw_fd() as u32
    }
}
