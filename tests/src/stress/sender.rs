//! The end of the data plane: sends in every system call, in pieces of any size, with pauses or without.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use serde::{Deserialize, Serialize};

use super::reader::{ENDED, REJECTED};
use super::script::{Item, Script, Seed};
use crate::splitmix::SplitMix;
use crate::wait::scaled;

/// How long a connection goes on that the gate doesn't join.
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// Items after the first call that was rejected.
const MORE: u64 = 24;
/// One send at most, where it isn't one item: less than the kernel cuts by itself, so that every path is in one buffer.
const TOGETHER: usize = 16_384;
/// One connection in so many cuts its sends anywhere.
const CUT: u64 = 8;
/// Between two calls, where there is nothing but calls.
const BETWEEN: Duration = Duration::from_micros(200);

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Data of any size, calls in between, and pauses.
    Mixed,
    /// One call after the other, each when the one before has been answered.
    Calls,
}

/// What was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Connections.
    pub connections: u64,
    /// Those of which a call was rejected.
    pub joined: u64,
    /// Calls.
    pub calls: u64,
    /// Bytes.
    pub bytes: u64,
    /// Of each joined connection the time from the preface to the first call that was rejected, in microseconds.
    pub waited: Vec<u64>,
}

impl Report {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.joined += other.joined;
        self.calls += other.calls;
        self.bytes += other.bytes;
        self.waited.extend(other.waited);
    }
}

/// One connection after the other: `count` of them. Each goes on until a call of it was rejected, or for so many `items`.
///
/// # Errors
/// One can't be made, or is cut off.
pub fn run(path: &Path, load: Load, items: Option<u64>, first: u64, count: u64) -> Result<Report> {
    let mut report = Report::default();
    for serial in 0..count {
        report.add(Connection::run(path, load, items, first + serial)?);
    }
    Ok(report)
}

struct Connection {
    socket: UnixStream,
    /// For everything that the other end needn't know.
    numbers: SplitMix,
    blocking: bool,
    /// When calls were sent that are not answered yet, and how many answers came.
    sent: Vec<Instant>,
    answered: usize,
    joined: Option<Instant>,
    ended: bool,
    bytes: u64,
}

impl Connection {
    fn run(path: &Path, load: Load, items: Option<u64>, serial: u64) -> Result<Report> {
        let mut numbers = SplitMix::new(serial);
        let mut seed = Seed::plain(numbers.word());
        if load == Load::Calls {
            seed = seed.calls_only();
        } else if numbers.within(1..=CUT) == 1 {
            seed = seed.cut();
        }
        let socket = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        let blocking = numbers.within(1..=2) == 1;
        socket.set_nonblocking(!blocking)?;
        let mut this = Self {
            socket,
            numbers,
            blocking,
            sent: Vec::new(),
            answered: 0,
            joined: None,
            ended: false,
            bytes: 0,
        };
        let mut script = Script::new(seed);
        this.send(&Script::beginning(seed))?;
        let begun = Instant::now();
        let limit = scaled(JOIN_LIMIT);
        match load {
            Load::Mixed => {
                let mut more = items.unwrap_or_else(|| this.numbers.within(1..=MORE));
                while more > 0 && begun.elapsed() < limit {
                    this.items(&mut script, seed)?;
                    this.answers(false)?;
                    more -= u64::from(items.is_some() || this.joined.is_some());
                }
            }
            Load::Calls => {
                while this.joined.is_none() && begun.elapsed() < limit {
                    let mut call = Vec::new();
                    script.next(&mut call);
                    this.sent.push(Instant::now());
                    this.send(&call)?;
                    while this.answered < this.sent.len() {
                        this.answers(true)?;
                    }
                    thread::sleep(BETWEEN);
                }
            }
        }
        this.send(&script.ending())?;
        this.finish()?;
        Ok(Report {
            connections: 1,
            joined: u64::from(this.joined.is_some()),
            calls: this.sent.len() as u64,
            bytes: this.bytes,
            waited: this
                .joined
                .map(|at| at.saturating_duration_since(begun).as_micros() as u64)
                .into_iter()
                .collect(),
        })
    }

    /// Sends some items: one, or a few small ones together.
    fn items(&mut self, script: &mut Script, seed: Seed) -> Result<()> {
        let wanted = self.numbers.within(1..=4);
        let mut out = Vec::new();
        for _ in 0..wanted {
            let before = out.len();
            let item = script.next(&mut out);
            if out.len() > TOGETHER && before > 0 && !seed.is_cut() {
                // Too much for one.
                let rest = out.split_off(before);
                self.piece(&out)?;
                out = rest;
            }
            if matches!(item, Item::Call { .. }) {
                self.sent.push(Instant::now());
            }
            if out.len() > TOGETHER {
                break;
            }
        }
        if !seed.is_cut() && out.len() <= TOGETHER {
            self.piece(&out)?;
        } else {
            let mut rest = &out[..];
            while !rest.is_empty() {
                let len = self.numbers.scattered(1..=65_536) as usize;
                let (piece, after) = rest.split_at(len.min(rest.len()));
                self.piece(piece)?;
                rest = after;
            }
        }
        Ok(())
    }

    /// Sends it, and may pause after it.
    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(bytes)?;
        match self.numbers.within(1..=10) {
            1..=5 => {}
            6..=8 => thread::sleep(Duration::from_micros(self.numbers.within(1..=300))),
            _ => thread::sleep(Duration::from_micros(self.numbers.within(300..=4000))),
        }
        Ok(())
    }

    /// Sends all of it, by some system call.
    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let cut = bytes.len() / 2;
            let slices = [IoSlice::new(&bytes[..cut]), IoSlice::new(&bytes[cut..])];
            let sent = match self.numbers.within(0..=3) {
                0 => self.socket.write(bytes),
                1 => self.socket.write_vectored(&slices),
                2 => send(&self.socket, bytes, SendFlags::NOSIGNAL).map_err(io::Error::from),
                _ => {
                    let mut control = SendAncillaryBuffer::default();
                    sendmsg(&self.socket, &slices, &mut control, SendFlags::NOSIGNAL)
                        .map_err(io::Error::from)
                }
            };
            match sent {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    self.bytes += sent as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags) -> Result<()> {
        let mut fds = [PollFd::new(&self.socket, what)];
        let limit = scaled(JOIN_LIMIT).try_into()?;
        ensure!(poll(&mut fds, Some(&limit))? == 1, "nobody reads");
        Ok(())
    }

    /// Takes the answers that are there; `wait`: at least one.
    fn answers(&mut self, wait: bool) -> Result<()> {
        if wait {
            self.wait(PollFlags::IN)?;
        }
        let mut answers = [0; 256];
        // Reads must not wait here, whatever sends do.
        if self.blocking {
            self.socket.set_nonblocking(true)?;
        }
        let read = self.socket.read(&mut answers);
        if self.blocking {
            self.socket.set_nonblocking(false)?;
        }
        let read = match read {
            Ok(0) => anyhow::bail!("the reader has gone"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        for answer in &answers[..read] {
            if *answer == ENDED {
                self.ended = true;
                continue;
            }
            if *answer == REJECTED && self.joined.is_none() {
                self.joined = self.sent.get(self.answered).copied();
            }
            self.answered += 1;
        }
        Ok(())
    }

    /// Ends the connection: in good order, or at once with data under way, as when the process is killed. There is no good order
    /// with data under way: the kernel takes the socket of a peer that is shut down out of the gate's map, and throws away what it
    /// has queued (`unix_shutdown`, `sock_map_unhash`).
    fn finish(&mut self) -> Result<()> {
        let way = self.numbers.within(1..=3);
        if way == 1 {
            return Ok(());
        }
        while !self.ended {
            self.answers(true)?;
        }
        if way == 2 {
            self.socket.shutdown(Shutdown::Write)?;
            self.socket.set_nonblocking(false)?;
            self.socket.set_read_timeout(Some(scaled(JOIN_LIMIT)))?;
            io::copy(&mut self.socket, &mut io::sink())?;
        }
        Ok(())
    }
}
