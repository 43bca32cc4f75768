//! The same on the host: what the programs do around the parser, written once more.

use std::cell::{Cell, RefCell};
use std::mem::zeroed;

use agent_common::abi::Failure;
use agent_common::abi::cases::{self, CALLS, Case, IN_FRONT};
use agent_common::h2::edit::{self, Edit, Named, Placed, Segments};
use agent_common::h2::paths::PathTable;
use agent_common::h2::substitute::{self, Substitute};
use agent_common::h2::track::{Begin, begin, end};
use agent_common::h2::walk::{Conn, Fault, Outcome, Source, UNRESOLVED, WATCHED, step};

const WINDOW: u32 = 256;
const STEPS: u32 = 64;
const GATE_STEPS: u32 = 32;
pub const RUNS: u32 = 33;
const MORE: u32 = 0;
const DONE: u32 = 1;
const UNREADABLE: u32 = 2;
const FAULT: u32 = 16;
const RESET: u32 = 254;

/// What has been read of the current piece, from which a walk that passes up to `RUN` fields at once goes on.
struct Window<const RUN: u32> {
    /// Where the next octet lies in the piece.
    at: Cell<usize>,
    left: Cell<u32>,
    window_at: Cell<u32>,
    window_len: Cell<u32>,
    window: RefCell<[u8; WINDOW as usize]>,
}

impl<const RUN: u32> Window<RUN> {
    /// Before `left` octets, the first of them at `at`, of which nothing has been read.
    fn new(at: usize, left: u32) -> Self {
        Self {
            at: Cell::new(at),
            left: Cell::new(left),
            window_at: Cell::new(0),
            window_len: Cell::new(0),
            window: RefCell::new([0; WINDOW as usize]),
        }
    }

    /// Reads on in the piece.
    fn fill(&self, piece: &[u8]) -> bool {
        let len = self.left.get().min(WINDOW);
        let from = &piece[self.at.get()..][..len as usize];
        self.window.borrow_mut()[..from.len()].copy_from_slice(from);
        self.window_at.set(0);
        self.window_len.set(len);
        len != 0
    }
}

impl<const RUN: u32> Source for Window<RUN> {
    const RUN: u32 = RUN;
    fn left(&self) -> u32 {
        self.left.get()
    }
    fn ready(&self) -> u32 {
        self.window_len.get() - self.window_at.get()
    }
    fn peek(&self, at: u32) -> u8 {
        self.window.borrow()[((self.window_at.get() + at) & (WINDOW - 1)) as usize]
    }
    fn pass(&self, n: u32) {
        self.left.set(self.left.get() - n);
        self.at.set(self.at.get() + n as usize);
        let at = self.window_at.get() + n;
        self.window_at.set(at.min(self.window_len.get()));
    }
}

impl<const RUN: u32> Placed for Window<RUN> {
    fn place(&self) -> u64 {
        self.at.get() as u64
    }
}

/// A send in pieces.
struct Sent<'a> {
    pieces: &'a [&'a [u8]],
    next: usize,
    behind: u32,
    /// As many fields as the tap's walk passes at once.
    window: Window<8>,
}

impl<'a> Sent<'a> {
    fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self {
            pieces,
            next: 0,
            behind: pieces.iter().map(|p| p.len() as u32).sum(),
            window: Window::new(0, 0),
        }
    }

    fn next_buffer(&mut self) -> bool {
        let Some(piece) = self.pieces.get(self.next) else {
            return false;
        };
        self.next += 1;
        self.behind -= piece.len() as u32;
        self.window = Window::new(0, piece.len() as u32);
        true
    }

    fn fill(&self) -> bool {
        self.window.fill(self.pieces[self.next - 1])
    }

    fn first_buffer(&mut self) -> bool {
        (self.window.left() != 0 || self.next_buffer())
            && (self.window.left() != 0 || self.next_buffer())
            && (self.window.left() == 0 || self.window.ready() != 0 || self.fill())
    }
}

/// Walks a send.
pub fn send(case: &Case, pieces: &[&[u8]], paths: &PathTable) {
    let mut s = Sent::new(pieces);
    let c = &case.conn;
    case.begun.set(0);
    case.kept.set(0);
    case.calls.set(0);
    if !s.first_buffer() {
        case.ended.set(UNREADABLE);
        return;
    }
    let begun = begin(c, &s.window, s.window.left() + s.behind);
    case.begun.set(cases::begun(begun));
    case.ended.set(DONE);
    if matches!(begun, Begin::Tls | Begin::Ignore) {
        return;
    }
    for found in &case.found {
        found.set(0);
    }
    let mut ended = MORE;
    for _ in 0..RUNS * STEPS {
        if let Some(end) = one(case, &mut s, paths, begun == Begin::Join) {
            ended = end;
            break;
        }
    }
    case.ended.set(ended);
    let fault = (ended >= FAULT).then(|| Fault::of(ended - FAULT));
    if ended == DONE || ended >= FAULT {
        case.kept.set(cases::kept(end(c, begun, fault)));
    }
}

fn one(case: &Case, s: &mut Sent<'_>, paths: &PathTable, joining: bool) -> Option<u32> {
    if s.window.left() == 0 {
        return if s.behind == 0 {
            Some(DONE)
        } else {
            (!s.next_buffer()).then_some(UNREADABLE)
        };
    }
    let c = &case.conn;
    let call = |class: u32| {
        let n = case.calls.get() as usize;
        if n < CALLS {
            case.call[n].set(u64::from(c.stream.get()) | u64::from(class) << 32);
            case.calls.set(n as u32 + 1);
        }
    };
    match step(c, &s.window, paths, joining) {
        Outcome::Continue | Outcome::Data | Outcome::Block => {}
        Outcome::Starved => return (!s.fill()).then_some(UNREADABLE),
        Outcome::Request => {
            let class = c.path.get();
            let found = &case.found[(class & 31) as usize];
            found.set(found.get() + 1);
            if class == UNRESOLVED {
                if c.candidates().0 != 0 {
                    call(class);
                }
            } else if class >= WATCHED {
                call(class);
            }
        }
        Outcome::Reset => call(RESET),
        Outcome::Fault(fault) => return Some(FAULT + fault as u32),
    }
    None
}

/// A buffer before the gate, in which paths are overwritten.
struct Buffer<'a> {
    packet: RefCell<&'a mut [u8]>,
    substitutes: &'a [Substitute],
}

impl Buffer<'_> {
    fn store(&self, place: u64, octets: &[u8]) -> Result<(), Failure> {
        let mut packet = self.packet.borrow_mut();
        let to = usize::try_from(place)
            .ok()
            .and_then(|at| packet.get_mut(at..at + octets.len()))
            .filter(|to| !to.is_empty())
            .ok_or(Failure::Unwritable)?;
        to.copy_from_slice(octets);
        Ok(())
    }
}

impl Edit for Buffer<'_> {
    fn substitute(&self, number: u32) -> Option<&Substitute> {
        self.substitutes.get(number as usize)
    }
    fn reject(&self, _: u64, _: bool) -> bool {
        true
    }
    fn literal(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> Result<(), Failure> {
        self.store(place, &s.spelling.substitute[from as usize..end as usize])
    }
    fn undo(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> bool {
        self.store(place, &s.spelling.watched[from as usize..end as usize])
            .is_ok()
    }
    fn index(&self, place: u64, octet: u8) -> Result<(), Failure> {
        self.store(place, &[octet])
    }
}

/// What the paths of rejected calls become.
pub fn substitutes(paths: &[&str]) -> Vec<Substitute> {
    let chosen = paths
        .iter()
        .map(|path| substitute::choose(path, paths.iter().copied()));
    chosen
        .map(|chosen| chosen.map_or(Substitute::NONE, |(_, substitute)| substitute))
        .collect()
}

/// Walks a buffer. Returns whether the connection was lost, or `None` where that takes more runs than the kernel allows.
pub fn buffer(
    conn: &Conn,
    packet: &mut [u8],
    paths: &PathTable,
    substitutes: &[Substitute],
) -> Option<bool> {
    let len = (packet.len() - IN_FRONT) as u32;
    let window = Window::<1>::new(IN_FRONT, len);
    let b = Buffer {
        packet: RefCell::new(packet),
        substitutes,
    };
    // SAFETY: it is made of cells of integers, for which all zero is a value.
    let segments: Segments = unsafe { zeroed() };
    segments.forget();
    for _ in 0..RUNS - 1 {
        if segments.found() {
            edit::apply(conn, &b, &segments);
        }
        for _ in 0..GATE_STEPS {
            if window.left() == 0 {
                return Some(false);
            }
            match edit::step(conn, &window, &segments, paths, false) {
                Outcome::Starved if !window.fill(&b.packet.borrow()) => return Some(true),
                Outcome::Fault(_) => return Some(true),
                _ => {}
            }
            if segments.found() {
                break;
            }
        }
    }
    None
}
