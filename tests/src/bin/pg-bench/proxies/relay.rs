//! A byte relay: copies both directions of each connection.

use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{UnixListener, UnixStream};

/// Bytes that are copied at a time: as many as the peers' own buffers hold.
const BUFFER: usize = 64 << 10;

/// Serves until the process is ended.
pub async fn run(listen: &Path, upstream: &Path) -> Result<()> {
    let listener = UnixListener::bind(listen).with_context(|| listen.display().to_string())?;
    loop {
        let (mut client, _) = listener.accept().await?;
        let mut server = UnixStream::connect(upstream)
            .await
            .with_context(|| upstream.display().to_string())?;
        tokio::spawn(async move {
            // One end that goes takes the other with it.
            let _ = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await;
        });
    }
}
