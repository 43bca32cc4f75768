//! Why the gate stands before the source's end of a connection and never before the client's, where it could edit answers: a socket in a
//! socket map loses what it has queued when its peer shuts its sending side down (the kernel's `unix_shutdown` takes it out of the map), and
//! that is how a source ends its connections in good order. What it answered last would be lost.
//!
//! It is so with a program that does nothing (`agent-ebpf/src/floor.rs`), so no program can be better. Should a kernel lose nothing, these
//! tests fail on it, and a gate with quiet answers can be thought of again.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context as _, Result, bail, ensure};
use pendguard_tests::floor::EmptyVerdict;
use pendguard_tests::frames::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, frame};
use pendguard_tests::peers::{Source, SourceKind, SourceOptions};
use pendguard_tests::wait::{WAIT_LIMIT, wait_for};

/// What is sent: less than a socket's buffer holds.
const LENGTH: usize = 64 << 10;
/// How long the source takes for its answer, in milliseconds: longer than a PING.
const HANDLING: u64 = 1500;

/// All that a client can read until the connection has ended.
async fn rest(socket: &mut UnixStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut octets = vec![0; LENGTH];
    wait_for("the connection ends", WAIT_LIMIT, async || {
        loop {
            match socket.read(&mut octets) {
                Ok(0) => return Ok(Some(())),
                Ok(n) => all.extend(&octets[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    })
    .await?;
    Ok(all)
}

/// Puts an empty program before a socket.
fn gate(socket: &UnixStream) -> Result<EmptyVerdict> {
    EmptyVerdict::before(&[OwnedFd::from(socket.try_clone()?)])
}

/// How much of [`LENGTH`] octets a client reads whose server ends the connection like that while they wait.
async fn read_of(behind: bool, end: impl FnOnce(&UnixStream) -> Result<()>) -> Result<usize> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let mut client = UnixStream::connect(&path)?;
    client.set_nonblocking(true)?;
    let (mut server, _) = listener.accept()?;
    let program = behind.then(|| gate(&client)).transpose()?;
    server.write_all(&vec![7; LENGTH])?;
    end(&server)?;
    drop(server);
    let read = rest(&mut client).await?;
    drop(program);
    Ok(read.len())
}

/// A server that closes loses nothing; one that shuts down first loses all that the client has not read.
#[tokio::test]
async fn what_waits_is_lost_at_a_shutdown() -> Result<()> {
    let shut = |server: &UnixStream| Ok(server.shutdown(Shutdown::Write)?);
    ensure!(read_of(false, |_| Ok(())).await? == LENGTH);
    ensure!(read_of(false, shut).await? == LENGTH);
    ensure!(read_of(true, |_| Ok(())).await? == LENGTH);
    let read = read_of(true, shut).await?;
    println!("{read} of {LENGTH} octets are read behind a program, when the server has shut down");
    ensure!(read < LENGTH);
    Ok(())
}

/// A frame of HTTP/2 (RFC 9113 §4.1): its type, flags, stream and length.
type Header = (u8, u8, u32, usize);

/// The frames that a server sent, which end with a whole one.
fn frames(mut octets: &[u8]) -> Result<Vec<Header>> {
    let mut all = Vec::new();
    while !octets.is_empty() {
        let (header, rest) = octets.split_at_checked(9).context("a header that is cut")?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let stream = u32::from_be_bytes(header[5..9].try_into()?);
        octets = rest.get(length..).context("a frame that is cut")?;
        all.push((header[3], header[4], stream, length));
    }
    Ok(all)
}

/// PendingFn, on stream 1.
fn request() -> Vec<u8> {
    // POST, http, `:path` and `:authority` as they are.
    let mut block = vec![0x83, 0x86, 0x04, 27];
    block.extend(b"/source.v1.Source/PendingFn\x01\x01a\x5f\x10application/grpc");
    let mut request = frame(HEADERS, END_HEADERS, 1, &block);
    request.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
    request
}

/// Reads until there is a frame of this type and these flags. Returns its payload.
async fn until(socket: &mut UnixStream, kind: u8, flags: u8) -> Result<Vec<u8>> {
    let mut seen = Vec::new();
    let mut octets = [0; 4096];
    let what = format!("a frame of type {kind} with flags {flags}");
    wait_for(&what, WAIT_LIMIT, async || {
        match socket.read(&mut octets) {
            Ok(0) => bail!("the connection ended before {what}: {:?}", frames(&seen)),
            Ok(n) => seen.extend(&octets[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let mut at = 0;
        for (k, f, _, length) in frames(&seen).unwrap_or_default() {
            if (k, f) == (kind, flags) {
                return Ok(Some(seen[at + 9..at + 9 + length].to_vec()));
            }
            at += 9 + length;
        }
        Ok(None)
    })
    .await
}

/// What a client finds of the answer to a call during which its source is told to end. Servers answer what is under way, and shut down.
async fn answered(behind: bool) -> Result<Vec<Header>> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("source.sock");
    let mut source = Source::start(&SourceOptions {
        kind: SourceKind::Rust,
        pending_delay: Some((HANDLING, HANDLING)),
        ..SourceOptions::new(&socket)
    })
    .await?;
    let mut client = UnixStream::connect(&socket)?;
    client.set_nonblocking(true)?;
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    client.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    until(&mut client, SETTINGS, ACK).await?;
    client.write_all(&frame(SETTINGS, ACK, 0, &[]))?;
    let program = behind.then(|| gate(&client)).transpose()?;
    client.write_all(&request())?;
    wait_for("the call is under way", WAIT_LIMIT, async || {
        Ok((source.stats().await?.pending == 1).then_some(()))
    })
    .await?;
    // hyper's server asks by a PING whether its GOAWAY has been read.
    let (ended, asked) = tokio::join!(source.quit(), async {
        let asked = until(&mut client, PING, 0).await?;
        Ok::<_, anyhow::Error>(client.write_all(&frame(PING, ACK, 0, &asked))?)
    });
    asked?;
    ended?;
    let read = rest(&mut client).await?;
    drop(program);
    frames(&read)
}

/// A call is under way while its source, which is on Numaflow's SDK, is told to end, as it is with every pod that ends.
#[tokio::test]
async fn what_a_source_answers_last_is_lost() -> Result<()> {
    for behind in [false, true] {
        let found = answered(behind).await?;
        println!("behind a program: {behind}: {found:?}");
        let is_answer = |frame: &Header| (frame.0, frame.2) == (DATA, 1);
        ensure!(
            found.iter().any(is_answer) != behind,
            "behind a program: {behind}: {found:?}"
        );
    }
    Ok(())
}
