//! The end of the source: reads a few bytes at a time, late, and knows of each whether it is the right one.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use super::script::{BEGINNING, ENDING, HEADER, Item, Script, Verdict, verdict};
use crate::frames::GOAWAY;
use crate::protocol::MAX_ERRORS;
use crate::splitmix::SplitMix;

/// What the reader says of a call, on the connection that it came on.
pub const ADMITTED: u8 = b'a';
/// The same, of a call that was rejected.
pub const REJECTED: u8 = b'r';
/// The same, of a connection's end.
pub const ENDED: u8 = b'e';
/// The largest read.
const MOST: u64 = 1000;
/// Reads before another connection has its turn.
const READS: u64 = 12;
/// One turn in so many is followed by a pause of the connection, so that its queue fills.
const PAUSES: u64 = 4;
/// The longest one, in microseconds.
const PAUSE: u64 = 2000;

/// How to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Little and late.
    Slow,
    /// At once, all that there is.
    Prompt,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Connections that said where they end.
    pub connections: u64,
    /// Those of which a call was rejected.
    pub joined: u64,
    /// Calls that came as they were sent.
    pub admitted: u64,
    /// Calls that were rejected.
    pub rejected: u64,
    /// Calls that came as they were sent, on a connection of which one had been rejected before.
    pub late: u64,
    /// Bytes.
    pub bytes: u64,
    /// Connections on which a byte was wrong, or too many, or missing.
    pub broken: u64,
    /// The first [`MAX_ERRORS`] of those.
    pub errors: Vec<String>,
}

/// Accepts and reads until `stop` says so; connections that live then are read to their ends.
///
/// # Errors
/// The socket can't be listened on.
pub fn serve(path: &Path, pace: Pace, mut stop: impl FnMut() -> bool) -> Result<Report> {
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    listener.set_nonblocking(true)?;
    let mut numbers = SplitMix::new(std::process::id().into());
    let mut connections: Vec<Connection> = Vec::new();
    let mut report = Report::default();
    loop {
        if stop() && connections.is_empty() {
            return Ok(report);
        }
        let ready = wait(&listener, &connections)?;
        if ready.0 {
            match rustix::net::accept_with(&listener, rustix::net::SocketFlags::NONBLOCK) {
                Ok(socket) => connections.push(Connection::new(socket.into())),
                Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for at in ready.1.into_iter().rev() {
            if connections[at].turn(pace, &mut numbers) {
                connections.swap_remove(at).end(&mut report);
            }
        }
    }
}

/// Whether somebody connects, and which connections have something to read now.
fn wait(listener: &UnixListener, connections: &[Connection]) -> io::Result<(bool, Vec<usize>)> {
    let now = Instant::now();
    let awake: Vec<usize> = (0..connections.len())
        .filter(|at| connections[*at].paused <= now)
        .collect();
    let mut fds = vec![PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    fds.extend(
        awake
            .iter()
            .map(|at| PollFd::new(&connections[*at].socket, PollFlags::IN)),
    );
    let limit = Duration::from_micros(if awake.len() < connections.len() {
        PAUSE / 4
    } else {
        50_000
    });
    poll(&mut fds, Some(&limit.try_into().map_err(io::Error::other)?))?;
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let accept = ready.next().unwrap_or_default();
    let ready = ready.zip(awake).filter(|(ready, _)| *ready);
    Ok((accept, ready.map(|(_, at)| at).collect()))
}

/// One connection.
struct Connection {
    socket: UnixStream,
    paused: Instant,
    check: Check,
    fault: Option<String>,
    reset: bool,
}

impl Connection {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            paused: Instant::now(),
            check: Check::default(),
            fault: None,
            reset: false,
        }
    }

    /// Reads something; `true`: it has ended.
    fn turn(&mut self, pace: Pace, numbers: &mut SplitMix) -> bool {
        let mut bytes = [0; 65_536];
        let (reads, most) = match pace {
            Pace::Slow => (numbers.within(1..=READS), MOST),
            Pace::Prompt => (1, bytes.len() as u64),
        };
        for _ in 0..reads {
            let size = match pace {
                Pace::Slow => numbers.within(1..=most) as usize,
                Pace::Prompt => bytes.len(),
            };
            match self.socket.read(&mut bytes[..size]) {
                Ok(0) => return true,
                Ok(read) => self.read(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // The sender has gone without reading every answer. What it has sent is there all the same.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    self.reset = true;
                    return true;
                }
                Err(error) => {
                    self.fault.get_or_insert_with(|| error.to_string());
                    return true;
                }
            }
        }
        if pace == Pace::Slow && numbers.within(1..=PAUSES) == 1 {
            self.paused = Instant::now() + Duration::from_micros(numbers.within(1..=PAUSE));
        }
        false
    }

    fn read(&mut self, bytes: &[u8]) {
        self.check.bytes += bytes.len() as u64;
        if self.fault.is_some() {
            // The rest is not what it should be either; the sender may still have its say.
            return;
        }
        let mut answers = Vec::new();
        if let Err(fault) = self.check.take(bytes, &mut answers) {
            self.fault = Some(fault);
        }
        // A sender that is in a hurry may be gone.
        let _ = self.socket.write(&answers);
    }

    fn end(self, report: &mut Report) {
        let Self {
            check,
            fault,
            reset,
            ..
        } = self;
        report.connections += 1;
        report.joined += u64::from(check.rejected > 0);
        report.admitted += check.admitted;
        report.rejected += check.rejected;
        report.late += check.late;
        report.bytes += check.bytes;
        let fault = fault.or_else(|| check.unfinished());
        if let Some(fault) = fault {
            report.broken += 1;
            if report.errors.len() < MAX_ERRORS {
                let seed = check.script.map(|(seed, _)| seed.0);
                report
                    .errors
                    .push(format!("seed {seed:x?}, reset: {reset}: {fault}"));
            }
        }
    }
}

/// Where a connection stands.
#[derive(Default)]
struct Check {
    script: Option<(super::script::Seed, Script)>,
    /// Read, and not checked yet.
    waiting: Vec<u8>,
    /// The item that is being read, and how much of it was right.
    item: Option<(Item, Vec<u8>, usize)>,
    ended: bool,
    bytes: u64,
    admitted: u64,
    rejected: u64,
    late: u64,
}

impl Check {
    /// Checks what was read, as far as that can be done now.
    fn take(&mut self, bytes: &[u8], answers: &mut Vec<u8>) -> Result<(), String> {
        self.waiting.extend_from_slice(bytes);
        loop {
            let Some((seed, script)) = &mut self.script else {
                let Some((beginning, rest)) = self.waiting.split_first_chunk::<BEGINNING>() else {
                    return Ok(());
                };
                let seed = Script::seed(beginning).ok_or("it doesn't begin as it should")?;
                self.script = Some((seed, Script::new(seed)));
                self.waiting = rest.to_vec();
                continue;
            };
            if self.waiting.is_empty() {
                return Ok(());
            }
            if self.ended {
                return Err(format!("{} bytes behind its end", self.waiting.len()));
            }
            let Some((item, sent, right)) = &mut self.item else {
                // Only the sender knows which item is the last one.
                if self.waiting.len() < HEADER {
                    return Ok(());
                }
                if self.waiting[3] == GOAWAY {
                    if self.waiting.len() < ENDING {
                        return Ok(());
                    }
                    let ending = script.ending();
                    if self.waiting[..ENDING] != ending {
                        return Err(format!(
                            "ends by {:02x?}, not {ending:02x?}",
                            &self.waiting[..ENDING]
                        ));
                    }
                    self.waiting.drain(..ENDING);
                    self.ended = true;
                    answers.push(ENDED);
                } else {
                    let mut sent = Vec::new();
                    let item = script.next(&mut sent);
                    self.item = Some((item, sent, 0));
                }
                continue;
            };
            let wrong = |at: usize, sent: &[u8], read: &[u8]| {
                format!(
                    "item {}, {at} of {} bytes, after {} bytes: {:02x?} was sent, {:02x?} was read",
                    script.items(),
                    sent.len(),
                    script.bytes() - (sent.len() - at) as u64,
                    &sent[at..sent.len().min(at + 32)],
                    &read[..read.len().min(32)],
                )
            };
            match item {
                Item::Data => {
                    let len = self.waiting.len().min(sent.len() - *right);
                    let expected = &sent[*right..*right + len];
                    let differs = (0..len).find(|at| expected[*at] != self.waiting[*at]);
                    if let Some(at) = differs {
                        return Err(wrong(*right + at, sent, &self.waiting[at..]));
                    }
                    self.waiting.drain(..len);
                    *right += len;
                    if *right == sent.len() {
                        self.item = None;
                    }
                }
                Item::Call { path } => {
                    let Some(read) = self.waiting.get(..sent.len()) else {
                        return Ok(());
                    };
                    match verdict(sent, read, path) {
                        None => return Err(wrong(0, sent, read)),
                        Some(Verdict::Rejected) => {
                            self.rejected += 1;
                            answers.push(REJECTED);
                        }
                        Some(Verdict::Admitted) => {
                            self.admitted += 1;
                            if self.rejected > 0 && !seed.is_cut() {
                                self.late += 1;
                            }
                            answers.push(ADMITTED);
                        }
                    }
                    let len = sent.len();
                    self.waiting.drain(..len);
                    self.item = None;
                }
            }
        }
    }

    /// What is missing at the end.
    fn unfinished(&self) -> Option<String> {
        let script = self.script.as_ref().map(|(_, script)| script);
        (!self.ended).then(|| {
            format!(
                "cut off after {} bytes, in item {}; {} bytes of it",
                self.bytes,
                script.map_or(0, Script::items),
                self.item.as_ref().map_or(0, |(_, _, right)| *right) + self.waiting.len(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::Seed;
    use super::*;

    fn stream(items: u64) -> (Vec<u8>, Vec<usize>) {
        let seed = Seed(5);
        let mut out = Script::beginning(seed);
        let mut script = Script::new(seed);
        let mut paths = Vec::new();
        for _ in 0..items {
            let before = out.len();
            if let Item::Call { path } = script.next(&mut out) {
                paths.push(before + path.start);
            }
        }
        out.extend(script.ending());
        (out, paths)
    }

    fn check(bytes: &[u8], size: usize) -> Result<Check, String> {
        let mut check = Check::default();
        let mut answers = Vec::new();
        for piece in bytes.chunks(size) {
            check.take(piece, &mut answers)?;
        }
        match check.unfinished() {
            None => Ok(check),
            Some(fault) => Err(fault),
        }
    }

    #[test]
    fn what_was_sent_is_right_however_it_is_read() {
        let (bytes, paths) = stream(40);
        for size in [1, 7, 1000, usize::MAX] {
            let check = check(&bytes, size).unwrap();
            assert_eq!((check.admitted, check.rejected), (paths.len() as u64, 0));
        }
    }

    #[test]
    fn every_fault_is_noticed() {
        let (bytes, _) = stream(12);
        for at in (0..bytes.len()).step_by(bytes.len() / 500 + 1) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(check(&changed, 777).is_err(), "changed at {at}");
            let mut lost = bytes.clone();
            lost.remove(at);
            assert!(check(&lost, 777).is_err(), "lost at {at}");
            let mut doubled = bytes.clone();
            doubled.splice(at..at, bytes[at..(at + 300).min(bytes.len())].to_vec());
            assert!(check(&doubled, 777).is_err(), "doubled at {at}");
            assert!(check(&bytes[..at], 777).is_err(), "cut off at {at}");
        }
    }
}
