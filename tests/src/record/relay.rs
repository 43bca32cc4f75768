//! Stands between a client and its source, hands every byte on, and keeps what the client sent.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// More than a client sends at once in a recording.
const BUFFER: usize = 64 << 10;

/// A relay for one connection.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
}

impl Relay {
    /// Listens on a Unix socket.
    ///
    /// # Errors
    /// It can't be made.
    pub fn listen(socket: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        Ok(Self { listener })
    }

    /// Takes one connection on to `upstream`, and serves it until both ends closed it. Returns what the client sent,
    /// in the pieces that came: its writes, except that some may have been joined.
    ///
    /// # Errors
    /// A socket failed.
    pub async fn run(self, upstream: &Path) -> io::Result<Vec<Vec<u8>>> {
        let (client, _) = self.listener.accept().await?;
        // A second connection is refused: its bytes would be missing.
        drop(self.listener);
        let server = UnixStream::connect(upstream).await?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let mut sent = Vec::new();
        let (requests, responses) = tokio::join!(
            copy(from_client, to_server, |piece| sent.push(piece.to_vec())),
            copy(from_server, to_client, |_| {}),
        );
        requests?;
        responses?;
        Ok(sent)
    }
}

/// Copies until the end of the input, and then ends the output.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut seen: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(length) => length,
            // A peer that closes with unread bytes: the same end.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        let piece = &buffer[..length];
        if piece.is_empty() {
            // Dropping the half shuts the direction down.
            return Ok(());
        }
        seen(piece);
        match to.write_all(piece).await {
            // The other end is gone; what this one still says is kept all the same.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
}
