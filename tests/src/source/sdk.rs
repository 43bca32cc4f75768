//! The SDK's server on a Unix socket: the process that a real source pod runs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use numaflow::shared::ServerExtras as _;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::generator::Shared;
use crate::wait::{scaled, wait_for};

/// What the SDK writes after the JSON object in its server-info file.
const INFO_END: &str = "U+005C__END__";
/// How long the SDK may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long open connections may take to end: a client that was stopped never will.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// The largest message, as in Numaflow's data plane.
pub const MAX_MESSAGE: usize = 64 << 20;

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The SDK's version, as it tells the data plane.
    pub version: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

#[derive(Deserialize)]
struct Info {
    version: String,
}

impl Server {
    /// Starts the server, and waits until it listens.
    ///
    /// The SDK writes its server-info file after the socket listens (that is how the data plane knows), so nothing
    /// has to connect to find out, and the first connection is the first client's.
    ///
    /// # Errors
    /// The socket or the file can't be made.
    pub async fn start(handler: Shared, socket: &Path, info: &Path) -> Result<Self> {
        match std::fs::remove_file(info) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| info.display().to_string());
            }
            _ => {}
        }
        let (stop, stopped) = oneshot::channel();
        let server = numaflow::source::Server::new(handler)
            .with_socket_file(socket)
            .with_server_info_file(info)
            .with_max_message_size(MAX_MESSAGE);
        let mut task = tokio::spawn(async move {
            server
                .start_with_shutdown(stopped)
                .await
                .map_err(|error| anyhow!("{error}"))
        });

        let what = format!("{} appears", info.display());
        let version = wait_for(&what, START_LIMIT, async || {
            let version = read_version(info)?;
            if version.is_none() && task.is_finished() {
                (&mut task).await??;
                bail!("the server ended before it listened");
            }
            Ok(version)
        })
        .await?;
        Ok(Self {
            version,
            stop,
            task,
        })
    }

    /// Waits until the server ends by itself, which it does only when it fails or on a signal.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn ended(&mut self) -> Result<()> {
        (&mut self.task).await?
    }

    /// Stops the server; connections that outlive the limit are cut.
    ///
    /// # Errors
    /// The server failed.
    pub async fn stop(mut self) -> Result<()> {
        // The other end is gone if the server ended already, which is what is wanted.
        let _ = self.stop.send(());
        match timeout(scaled(STOP_LIMIT), &mut self.task).await {
            Ok(ended) => ended?,
            Err(_) => {
                self.task.abort();
                // Wait, so that the SDK has removed its files.
                match self.task.await {
                    Err(error) if !error.is_cancelled() => Err(error.into()),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// The version in a complete server-info file; `None` while there is none.
fn read_version(info: &Path) -> Result<Option<String>> {
    let text = match std::fs::read_to_string(info) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| info.display().to_string()),
    };
    let Some(json) = text.strip_suffix(INFO_END) else {
        return Ok(None);
    };
    let Info { version } = serde_json::from_str(json).context("the server-info file")?;
    Ok(Some(version))
}

/// Where the server-info file goes when nothing is said: beside the socket, so that two sources never share it.
#[must_use]
pub fn default_info_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".server-info");
    path.into()
}
