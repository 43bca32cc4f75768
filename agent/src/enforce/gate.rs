//! Puts the gate before connections.
//!
//! A socket joins the gate once, and stays until it closes: taking a live one out would throw away what it has queued. It
//! joins only while nothing is under way to it. For some microseconds the process's sends are held at their entry
//! (`hold` in agent-ebpf), none had begun before, and the source has read everything; otherwise the join is tried again
//! later, and until then calls are admitted and counted with the reason.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use agent_common::abi::{
    ConnKey, FOREIGN, Failure, Gated, HOLD_READS, HOLD_ROUNDS, Slot, Target, gate as state,
    tracked, verdict,
};
use agent_common::h2::track::status;
use aya::maps::{HashMap, MapData, SockHash};
use rustix::fs::OFlags;
use rustix::net::sockopt;

use super::peer::{self, Process, Transport};
use super::{Obstacles, View, epoch, word32, word64};
use crate::observer::since_boot;

/// Bytes of a gated connection's state.
pub const GATED: usize = size_of::<Gated>();
/// Waits before the second try and on; the last one goes on for as long as the connection lives.
const WAITS: &[Duration] = &[
    Duration::from_millis(1),
    Duration::from_millis(1),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(3),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(5),
];
/// The same where nothing but a moment without a send is missing.
const WAITS_FOR_LUCK: &[Duration] = WAITS.split_at(WAITS.len() - 2).0;
/// Sweeps between two looks for connections that nobody told of.
const LOOK: u64 = 10;
/// What may pass at least between the hold's beginning and the insertion.
const HOLD: Duration = Duration::from_micros(60);
/// `BPF_NOEXIST`.
const NEW_ONLY: u64 = 1;

/// A process whose connections are to be joined.
struct Waiting {
    tries: usize,
    next: Instant,
}

/// The gate, as user space sees it.
pub struct Gate {
    sockets: SockHash<MapData, u64>,
    gated: HashMap<MapData, u64, [u8; GATED]>,
    obstacles: Obstacles,
    waiting: BTreeMap<u32, Waiting>,
    sweeps: u64,
    /// What may pass between the hold's beginning and the insertion: an eighth of what a send is held, on this machine.
    hold: Duration,
}

/// A connection of the process that isn't gated.
struct Open {
    key: ConnKey,
    socket: OwnedFd,
    cookie: u64,
}

impl Open {
    /// Whether all that was sent has been read: what waits in the other end's queue is charged to this one.
    fn is_read(&self) -> bool {
        let mut waiting: libc::c_int = 0;
        // SAFETY: the call writes one integer, which outlives it.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
        result == 0 && waiting == 0
    }
}

impl Gate {
    /// A gate of these maps.
    pub fn new(
        sockets: SockHash<MapData, u64>,
        gated: HashMap<MapData, u64, [u8; GATED]>,
        obstacles: Obstacles,
    ) -> Self {
        Self {
            sockets,
            gated,
            obstacles,
            waiting: BTreeMap::new(),
            sweeps: 0,
            hold: (held_for() / 8).max(HOLD),
        }
    }

    /// Connections of `pid` are to be joined: one has begun, or its calls are to be rejected from now on.
    pub fn want(&mut self, pid: u32) {
        let next = Instant::now();
        self.waiting.insert(pid, Waiting { tries: 0, next });
    }

    /// When something is due.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.next).min()
    }

    /// Tries what is due.
    pub fn work(&mut self, view: &View<'_>) {
        let now = Instant::now();
        let due: Vec<u32> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.next <= now)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in due {
            let left = match self.join(pid, view) {
                Ok(left) => left,
                Err(error) => {
                    // It ends, or may not be looked at.
                    tracing::debug!(pid, "not joined: {error}");
                    crate::discovery::proc::runs(pid).then_some(WAITS)
                }
            };
            match (left, self.waiting.get_mut(&pid)) {
                (Some(waits), Some(waiting)) => {
                    waiting.next = Instant::now() + waits[waiting.tries.min(waits.len() - 1)];
                    waiting.tries += 1;
                }
                _ => drop(self.waiting.remove(&pid)),
            }
        }
    }

    /// Joins the connections of a process. How long is waited before each try from the second on, if there is something left to be tried.
    fn join(&mut self, pid: u32, view: &View<'_>) -> io::Result<Option<&'static [Duration]>> {
        let target = match view.targets.get(&pid, 0) {
            Ok(target) if target.verdict == verdict::REJECTED => target,
            _ => return Ok(None),
        };
        let process = Process::open(pid)?;
        let (open, gated, unready) = self.open(&process, pid, &target, view);
        let Some(first) = open.first() else {
            return Ok(unready.then_some(WAITS));
        };
        let ends: Vec<(u64, OwnedFd)> = peer::accepted(pid, &first.socket)?
            .into_iter()
            .filter_map(|end| Some((sockopt::socket_cookie(&end).ok()?, end)))
            .collect();
        let joined: HashSet<u64> = self.sockets.keys().flatten().collect();
        // An end more than there are connections that are followed: the hold would not hold its sender. One less: a connection
        // has not been accepted yet, and another's end would be taken for its.
        let unclear = ends.len() != open.len() + gated;
        let ends: Vec<_> = ends
            .into_iter()
            .filter(|(c, _)| !joined.contains(c))
            .collect();
        let obstacle = if unclear {
            Some(Failure::NoPeer)
        } else if ends.iter().any(|(_, end)| !is_nonblocking(end)) {
            Some(Failure::Blocking)
        } else {
            self.insert(&open, &ends, &target, view)
        };
        tracing::debug!(
            pid,
            connections = open.len(),
            gated,
            joined = obstacle.is_none(),
            obstacle = obstacle.map(Failure::name),
            "gate"
        );
        for connection in &open {
            let _ = match obstacle {
                None => self.obstacles.remove(&connection.key),
                Some(why) => self.obstacles.insert(connection.key, why as u32, 0),
            };
        }
        Ok(match obstacle {
            None => unready.then_some(WAITS),
            // It is only a matter of luck, with a client that hardly ever stops.
            Some(Failure::Busy) => Some(WAITS_FOR_LUCK),
            // A blocking socket too: many servers accept first, and then make it non-blocking.
            Some(_) => Some(WAITS),
        })
    }

    /// The process's connections that could be joined, how many are already, and whether there are some that can't be yet.
    fn open(
        &mut self,
        process: &Process,
        pid: u32,
        target: &Target,
        view: &View<'_>,
    ) -> (Vec<Open>, usize, bool) {
        let mut open = Vec::new();
        let mut gated = 0;
        let mut unready = false;
        for key in view
            .connections
            .keys()
            .flatten()
            .filter(|key| key.tgid == pid)
        {
            let Ok(bytes) = view.connections.get(&key, 0) else {
                continue;
            };
            if epoch(&bytes) != target.epoch {
                continue;
            }
            if word32(&bytes, tracked::GATED) != 0 {
                gated += 1;
                continue;
            }
            if self
                .obstacles
                .get(&key, 0)
                .is_ok_and(|note| note == FOREIGN)
            {
                gated += 1;
                continue;
            }
            if word32(&bytes, tracked::STATUS) != status::SYNCED {
                // TLS, or lost; it may be joined later.
                unready |= word32(&bytes, tracked::STATUS) == status::UNSYNCED;
                continue;
            }
            // Of a number that came back as a file, nothing is wanted: to close a duplicate of it may wait for whoever serves that file.
            if !peer::is_socket(pid, key.fd) {
                continue;
            }
            let Ok(socket) = process.descriptor(key.fd) else {
                continue;
            };
            match peer::transport(&socket) {
                Ok(Transport::Unix) => {}
                Ok(Transport::Other) => {
                    let _ = self.obstacles.insert(key, Failure::Tcp as u32, 0);
                    continue;
                }
                Err(_) => continue,
            }
            let Ok(cookie) = sockopt::socket_cookie(&socket) else {
                continue;
            };
            // Joined, and waiting for its next send.
            if self.gated.get(&cookie, 0).is_ok() {
                gated += 1;
                continue;
            }
            open.push(Open {
                key,
                socket,
                cookie,
            });
        }
        (open, gated, unready)
    }

    /// Puts the gate before the source's ends, while the process's sends are held. Returns why not.
    fn insert(
        &mut self,
        open: &[Open],
        ends: &[(u64, OwnedFd)],
        target: &Target,
        view: &View<'_>,
    ) -> Option<Failure> {
        let (Some(hold), Some(broken)) = (
            view.slots.atomic(target.slot, offset_of!(Slot, hold)),
            view.slots.atomic(target.slot, offset_of!(Slot, broken)),
        ) else {
            return Some(Failure::Refused);
        };
        if target.slot == 0 {
            // Without a slot of its own, nothing holds it.
            return Some(Failure::Full);
        }
        broken.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        let held = u64::try_from(8 * self.hold.as_nanos()).unwrap_or(u64::MAX);
        hold.store(since_boot().saturating_add(held), Ordering::SeqCst);
        // A send that begins from here on sees the mark; one that began before is seen below.
        fence(Ordering::SeqCst);
        let mut result = self.insert_held(open, ends, target, view, begun);
        // One that can't be held from here on begins behind the insertion.
        if result.is_none() && broken.load(Ordering::SeqCst) != 0 {
            tracing::debug!(
                pid = open[0].key.tgid,
                "a send could not be held while the gate joined its connection"
            );
            result = Some(Failure::Busy);
        }
        // The gate takes its place when the hold is over, and not before.
        if result.is_some() {
            for connection in open {
                let _ = self.gated.remove(&connection.cookie);
            }
        }
        hold.store(0, Ordering::SeqCst);
        result
    }

    fn insert_held(
        &mut self,
        open: &[Open],
        ends: &[(u64, OwnedFd)],
        target: &Target,
        view: &View<'_>,
        begun: Instant,
    ) -> Option<Failure> {
        // A send that had begun is over soon, and soon read.
        let sent = loop {
            if let Some(sent) = Self::still(open, ends, target, view) {
                break sent;
            }
            if begun.elapsed() > self.hold / 2 {
                return Some(Failure::Busy);
            }
        };
        for (connection, sent) in open.iter().zip(sent) {
            let value = joining(connection.key, target.generation, sent);
            if self
                .gated
                .insert(connection.cookie, value, NEW_ONLY)
                .is_err()
            {
                return Some(Failure::Full);
            }
        }
        for (cookie, end) in ends {
            if begun.elapsed() > self.hold {
                return Some(Failure::Busy);
            }
            if let Err(error) = self.sockets.insert(*cookie, Raw(end), NEW_ONLY) {
                tracing::warn!("the kernel refuses a socket of the source: {error}");
                return Some(Failure::Refused);
            }
        }
        // Something was sent all the same, by a send that the kernel didn't show to the hold.
        if !open.iter().all(Open::is_read) {
            return Some(Failure::Busy);
        }
        None
    }

    /// How many bytes each connection has sent, if no send is under way and all is read; `None` also where one has been closed meanwhile.
    fn still(
        open: &[Open],
        ends: &[(u64, OwnedFd)],
        target: &Target,
        view: &View<'_>,
    ) -> Option<Vec<u64>> {
        let mut sent = Vec::with_capacity(open.len());
        for connection in open {
            let bytes = view.connections.get(&connection.key, 0).ok()?;
            if word64(&bytes, tracked::SENDING) != 0
                || word32(&bytes, tracked::STATUS) != status::SYNCED
                || epoch(&bytes) != target.epoch
            {
                return None;
            }
            sent.push(word64(&bytes, tracked::SENT));
        }
        let empty =
            |(_, end): &(u64, OwnedFd)| rustix::io::ioctl_fionread(end).is_ok_and(|n| n == 0);
        (open.iter().all(Open::is_read) && ends.iter().all(empty)).then_some(sent)
    }

    /// Forgets connections that are gone, and looks for some that nobody told of (an event may be lost).
    pub fn sweep(&mut self, view: &View<'_>) {
        self.sweeps = self.sweeps.wrapping_add(1);
        if self.sweeps.is_multiple_of(LOOK) {
            let pids: BTreeSet<u32> = view
                .connections
                .keys()
                .flatten()
                .map(|key| key.tgid)
                .collect();
            for pid in pids {
                if !self.waiting.contains_key(&pid) {
                    self.want(pid);
                }
            }
        }
        let mut held = Vec::new();
        let mut numbers: BTreeMap<(u32, u32), Vec<u64>> = BTreeMap::new();
        let cookies: Vec<u64> = self.gated.keys().flatten().collect();
        for cookie in cookies {
            let Ok(bytes) = self.gated.get(&cookie, 0) else {
                continue;
            };
            let key = ConnKey {
                tgid: word32(&bytes, offset_of!(Gated, key)),
                fd: word32(&bytes, offset_of!(Gated, key) + offset_of!(ConnKey, fd)),
            };
            let generation = word64(&bytes, offset_of!(Gated, generation));
            let target = view
                .targets
                .get(&key.tgid, 0)
                .ok()
                .filter(|target| target.generation == generation)
                .filter(|_| view.connections.get(&key, 0).is_ok());
            // No join is under way here: one that is held was begun by an agent that has ended since. Nothing is lost by beginning anew.
            let hold = target.and_then(|it| view.slots.atomic(it.slot, offset_of!(Slot, hold)));
            let cut_off = hold.is_some_and(|hold| hold.load(Ordering::SeqCst) != 0);
            let waits = word32(&bytes, offset_of!(Gated, state)) == state::JOINING;
            if target.is_none() || cut_off && waits {
                let _ = self.gated.remove(&cookie);
            } else {
                let of_number = numbers.entry((key.tgid, key.fd)).or_default();
                of_number.push(cookie);
            }
            if cut_off {
                held.extend(hold);
                self.want(key.tgid);
            }
        }
        for hold in held {
            hold.store(0, Ordering::SeqCst);
        }
        // A client that connects again gets the number of the descriptor that it closed.
        for ((pid, fd), cookies) in numbers {
            if cookies.len() > 1
                && let Ok(now) = cookie_of(pid, fd)
            {
                for gone in cookies.into_iter().filter(|cookie| *cookie != now) {
                    let _ = self.gated.remove(&gone);
                }
            }
        }
        super::forget_gone(&mut self.obstacles, view);
    }
}

/// Which socket a process's descriptor is.
fn cookie_of(pid: u32, fd: u32) -> io::Result<u64> {
    let socket = Process::open(pid)?.descriptor(fd)?;
    Ok(sockopt::socket_cookie(&socket)?)
}

/// How long a send is held at most: the time that as many looks at the clock take.
fn held_for() -> Duration {
    let begun = Instant::now();
    for _ in 0..HOLD_ROUNDS {
        std::hint::black_box(since_boot());
    }
    begun.elapsed() * HOLD_READS
}

/// The state of a connection that the gate is to follow from the tap's state on.
fn joining(key: ConnKey, generation: u64, sent: u64) -> [u8; GATED] {
    const { assert!(state::JOINING == 0, "all the rest is zero") };
    let mut bytes = [0; GATED];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(Gated, key), &key.tgid.to_ne_bytes());
    put(
        offset_of!(Gated, key) + offset_of!(ConnKey, fd),
        &key.fd.to_ne_bytes(),
    );
    put(offset_of!(Gated, generation), &generation.to_ne_bytes());
    put(offset_of!(Gated, joined_at), &sent.to_ne_bytes());
    bytes
}

/// Whether reads of it never wait (the flag belongs to the open file, so a duplicate tells). On a socket in a socket map a
/// read that waits ends with a spurious EAGAIN.
fn is_nonblocking(socket: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(socket).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
}

/// What aya wants of a socket.
struct Raw<'a>(&'a OwnedFd);

impl AsRawFd for Raw<'_> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}
