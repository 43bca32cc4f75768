//! The API's Unix socket: one agent at a time, root only, and nothing left behind.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use crate::cli::SOCKET_PATH_MAX;

/// Connections that wait to be accepted at most.
const BACKLOG: i32 = 64;

/// Why the socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No socket can have such a path.
    #[error("--api-socket {}: a Unix socket's path has at most {SOCKET_PATH_MAX} octets and none is 0", .0.display())]
    Path(PathBuf),
    /// The directory can't be made or opened.
    #[error("--api-socket: directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent.
    #[error("another agent{} listens on {} (--api-socket)", Pid(*.pid), path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Its process id, unless it is in another pid namespace.
        pid: Option<u32>,
    },
    /// Something else lies there, and it isn't ours to remove.
    #[error("--api-socket {}: there is something that is no socket; it is left alone", .0.display())]
    NotASocket(PathBuf),
    /// Another agent starts on the same directory.
    #[error("--api-socket: directory {} is locked by another process", .0.display())]
    Locked(PathBuf),
    /// The rest.
    #[error("--api-socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

struct Pid(Option<u32>);

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, " (pid {pid})"),
            None => Ok(()),
        }
    }
}

/// The listening socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file: removed when this is dropped, if it is still the same.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl ApiSocket {
    /// Listens on `path`, for the owner only (0600). Makes the directory (0700), and takes the place of a socket that
    /// nobody listens on.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        // Linux would take a path of 108 octets, without the final 0, but most clients, std's among them, would not.
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(SocketError::Path(path.to_owned()));
        }
        let address = SocketAddrUnix::new(path).map_err(|_| SocketError::Path(path.to_owned()))?;
        let failed = |source: io::Error| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        // Between finding a dead socket and binding a new one, no second agent may do the same. A lock on the directory
        // leaves no file behind.
        let _lock = lock(directory(path)).await?;
        clear(path).await?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|e| failed(e.into()))?;
        // Linux gives the file the mode of the socket: at no time can anybody else connect.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        rustix::net::bind(&socket, &address).map_err(|e| failed(e.into()))?;
        let file = SocketFile::new(path).map_err(failed)?;
        rustix::net::listen(&socket, BACKLOG).map_err(|e| failed(e.into()))?;
        let listener = UnixListener::from_std(StdListener::from(socket)).map_err(failed)?;
        Ok(Self { listener, file })
    }

    /// The listener, and its file, which must be kept as long.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put another one in its place.
        if fs::symlink_metadata(&self.path)
            .is_ok_and(|m| (m.dev(), m.ino()) == (self.device, self.inode))
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes the directory, if it is missing, and locks it until the file is dropped.
async fn lock(directory: &Path) -> Result<File, SocketError> {
    const TRIES: u32 = 20;
    let failed = |source: io::Error| SocketError::Directory {
        path: directory.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let file = File::open(directory).map_err(failed)?;
    for _ in 0..TRIES {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
    Err(SocketError::Locked(directory.to_owned()))
}

/// Removes the socket of an agent that is dead.
async fn clear(path: &Path) -> Result<(), SocketError> {
    let failed = |source: io::Error| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let in_use = |pid| SocketError::InUse {
        path: path.to_owned(),
        pid,
    };
    match UnixStream::connect(path).await {
        Ok(stream) => Err(in_use(peer(&stream))),
        // Nobody has it open.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Somebody listens, but is too busy to accept.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use(None)),
        Err(error) => Err(failed(error)),
    }
}

/// Who listened on the other end (`SO_PEERCRED`); a process outside our pid namespace shows as 0.
pub fn peer(stream: &UnixStream) -> Option<u32> {
    let pid = stream.peer_cred().ok()?.pid()?;
    u32::try_from(pid).ok().filter(|&pid| pid != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn it_is_the_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/api.sock");
        let _socket = ApiSocket::bind(&path).await.unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&directory.path().join("a/b")), 0o700);
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        drop(ApiSocket::bind(&path).await.unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        // std doesn't remove the file.
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = ApiSocket::bind(&path).await.unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn a_live_agent_is_named_by_its_pid() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let _first = ApiSocket::bind(&path).await.unwrap();
        let error = ApiSocket::bind(&path).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        assert!(error.contains("--api-socket"), "{error}");
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn another_agents_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let first = ApiSocket::bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _second = ApiSocket::bind(&path).await.unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        fs::write(&path, "precious").unwrap();
        let error = ApiSocket::bind(&path).await.unwrap_err();
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn paths_that_cant_be() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(SOCKET_PATH_MAX));
        let error = ApiSocket::bind(&long).await.unwrap_err();
        assert!(matches!(error, SocketError::Path(_)), "{error}");
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = ApiSocket::bind(&file.join("api.sock")).await.unwrap_err();
        assert!(matches!(error, SocketError::Directory { .. }), "{error}");
        let longest = "x".repeat(SOCKET_PATH_MAX);
        assert!(SocketAddrUnix::new(&*longest).is_ok());
        let unusable = ApiSocket::bind(Path::new("a\0b")).await.unwrap_err();
        assert!(matches!(unusable, SocketError::Path(_)), "{unusable}");
    }

    #[tokio::test]
    async fn of_two_that_start_at_once_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        drop(StdListener::bind(&path).unwrap());
        let mut tries = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let path = path.clone();
            tries.spawn(async move { ApiSocket::bind(&path).await });
        }
        let (won, lost): (Vec<_>, Vec<_>) =
            tries.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 7));
    }
}
