//! What is measured: system calls of one kind, many of them, made by a process of their own.

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use rustix::pipe::{SpliceFlags, pipe, splice};
use serde::{Deserialize, Serialize};

use crate::wire;

/// A kind of system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A send: PendingFn as Numaflow's Rust data plane sends it: 60 bytes, three frames.
    Pending,
    /// A send: a request for messages, one DATA frame of 13 bytes.
    Read,
    /// A send: a DATA frame of 16 KiB.
    Bulk,
    /// A send: eight bytes that are no HTTP/2.
    Other,
    /// A write that the kernel refuses: the program leaves with its first instructions. What it takes is the
    /// accounting and the call of a program.
    Refused,
    /// A receive: the answer of a PendingFn call: 42 bytes, three frames.
    Answer,
    /// A receive: a DATA frame of 100 bytes, of a stream that isn't watched.
    Message,
    /// A receive: a DATA frame of 16 KiB, of a stream that isn't watched.
    BulkMessage,
    /// A receive: eight bytes of a connection that is no HTTP/2.
    OtherReceived,
    /// One byte to /dev/null.
    Null,
    /// One byte from /dev/zero.
    Zero,
    /// `getppid`, which no program is attached to.
    Unhooked,
}

impl Kind {
    /// What the names of the programs begin with that its system calls run.
    pub fn programs(self) -> &'static str {
        match self {
            Self::Answer | Self::Message | Self::BulkMessage | Self::OtherReceived | Self::Zero => {
                "answer_"
            }
            _ => "tap_",
        }
    }

    /// As the tables call it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Pending => "send: a `PendingFn` call (60 bytes, three frames)",
            Self::Read => "send: a request for messages (one small DATA frame)",
            Self::Bulk => "send: a DATA frame of 16 KiB",
            Self::Other => "send: eight bytes that are no HTTP/2",
            Self::Refused => {
                "a write that the kernel refuses: the accounting and the call of a program, nothing else"
            }
            Self::Answer => "receive: the answer of a `PendingFn` call (three frames)",
            Self::Message => "receive: a message (a DATA frame of 100 bytes)",
            Self::BulkMessage => "receive: a DATA frame of 16 KiB",
            Self::OtherReceived => "receive: eight bytes that are no HTTP/2",
            Self::Null => "`write` of one byte to /dev/null",
            Self::Zero => "`read` of one byte from /dev/zero",
            Self::Unhooked => "`getppid`, which nothing hangs on",
        }
    }

    /// How many of it are measured where `count` of the cheapest ones are.
    pub fn share(self, count: u32) -> u32 {
        match self {
            Self::Bulk | Self::BulkMessage | Self::Answer => count / 10,
            _ => count,
        }
    }

    /// Its length on the wire.
    fn received(self) -> Vec<u8> {
        match self {
            Self::Answer => wire::answer(wire::stream(0)),
            Self::Message => wire::data(100),
            Self::BulkMessage => wire::data(16384),
            _ => vec![1, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// Makes `count` system calls of this kind and prints the nanoseconds that they took; prints its pid, and waits for a line, before.
/// Of calls of PendingFn that are answered, `together` go in one send, as do their answers.
pub fn make(kind: Kind, count: u32, together: u32) -> Result<()> {
    println!("{}", std::process::id());
    std::io::stdin().lock().read_line(&mut String::new())?;
    let elapsed = match kind {
        Kind::Unhooked => repeat(count, || {
            std::hint::black_box(rustix::process::getppid());
            Ok(())
        }),
        Kind::Null => {
            let mut null = std::fs::File::create("/dev/null")?;
            repeat(count, || Ok(null.write_all(&[0])?))
        }
        Kind::Zero => {
            let mut zero = std::fs::File::open("/dev/zero")?;
            repeat(count, || Ok(zero.read_exact(&mut [0])?))
        }
        Kind::Refused => {
            // Open for reading only.
            let mut refused = std::fs::File::open("/dev/null")?;
            repeat(count, || {
                std::hint::black_box(refused.write(&[0]).is_err());
                Ok(())
            })
        }
        Kind::Pending | Kind::Read | Kind::Bulk | Kind::Other => send(kind, count),
        Kind::Answer | Kind::Message | Kind::BulkMessage | Kind::OtherReceived => {
            receive(kind, count, together)
        }
    }?;
    println!("{}", elapsed.as_nanos());
    Ok(())
}

fn repeat(count: u32, mut call: impl FnMut() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..count {
        call()?;
    }
    Ok(start.elapsed())
}

fn send(kind: Kind, count: u32) -> Result<Duration> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while theirs.read(&mut buffer).is_ok_and(|n| n > 0) {}
    });
    if kind != Kind::Other {
        ours.write_all(&wire::client_begins())?;
    }
    let bytes = match kind {
        Kind::Read => wire::data(13),
        Kind::Bulk => wire::data(16384),
        _ => vec![1, 0, 0, 0, 0, 0, 0, 0],
    };
    let start = Instant::now();
    for i in 0..count {
        if kind == Kind::Pending {
            ours.write_all(&wire::request(wire::stream(i)))?;
        } else {
            ours.write_all(&bytes)?;
        }
    }
    let elapsed = start.elapsed();
    drop(ours);
    reader.join().ok();
    Ok(elapsed)
}

/// A server in a process of its own, which isn't watched.
fn server(kind: Kind, count: u32, together: u32, end: UnixStream) -> Result<Child> {
    let name = kind.to_possible_value().context("kind")?;
    Command::new(std::env::current_exe()?)
        .args(["serve", name.get_name(), &count.to_string()])
        .args(["--together", &together.to_string()])
        .env_clear()
        .stdin(OwnedFd::from(end))
        .stdout(Stdio::null())
        .spawn()
        .context("the server")
}

fn receive(kind: Kind, count: u32, together: u32) -> Result<Duration> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = server(kind, count, together, theirs)?;
    // No more than was sent at once a receive.
    let mut buffer = kind.received().repeat(together as usize);
    if kind != Kind::OtherReceived {
        ours.write_all(&wire::client_begins())?;
        ours.read_exact(&mut wire::server_begins())?;
    }
    let start = Instant::now();
    for first in (0..count).step_by(together as usize) {
        if kind == Kind::Answer {
            let streams = (first..first + together).map(wire::stream);
            ours.write_all(&streams.flat_map(wire::request).collect::<Vec<_>>())?;
        }
        ours.read_exact(&mut buffer)?;
    }
    let elapsed = start.elapsed();
    drop(ours);
    ensure!(child.wait()?.success(), "the server failed");
    Ok(elapsed)
}

/// The server: standard input is its connection. It takes requests by `splice`, which no program is attached to.
pub fn serve(kind: Kind, count: u32, together: u32) -> Result<()> {
    let connection = UnixStream::from(rustix::io::dup(std::io::stdin())?);
    let requests = Drain::new(&connection)?;
    let mut connection = &connection;
    if kind != Kind::OtherReceived {
        requests.take(wire::client_begins().len())?;
        connection.write_all(&wire::server_begins())?;
    }
    let bytes = kind.received();
    let of_a_request = wire::request(wire::stream(0)).len();
    for first in (0..count).step_by(together as usize) {
        if kind == Kind::Answer {
            requests.take(of_a_request * together as usize)?;
            let streams = (first..first + together).map(wire::stream);
            connection.write_all(&streams.flat_map(wire::answer).collect::<Vec<_>>())?;
        } else {
            connection.write_all(&bytes.repeat(together as usize))?;
        }
    }
    Ok(())
}

/// Takes bytes of a connection away unread, by `splice`, which no program is attached to.
pub struct Drain<'a> {
    connection: &'a UnixStream,
    out: OwnedFd,
    into: OwnedFd,
    null: std::fs::File,
}

impl<'a> Drain<'a> {
    pub fn new(connection: &'a UnixStream) -> Result<Self> {
        let (out, into) = pipe()?;
        Ok(Self {
            connection,
            out,
            into,
            null: std::fs::File::create("/dev/null")?,
        })
    }

    pub fn take(&self, mut len: usize) -> Result<()> {
        let flags = SpliceFlags::empty();
        while len > 0 {
            let taken = splice(self.connection, None, &self.into, None, len, flags)?;
            ensure!(taken > 0, "the client has gone");
            splice(&self.out, None, &self.null, None, taken, flags)?;
            len -= taken;
        }
        Ok(())
    }
}
