//! The bytes of a send or of a receive, where the process keeps them: one buffer or an array of them, in user memory.

use core::ops::Deref;

use agent_common::abi::answers::Answers;
use agent_common::abi::{ConnKey, Tracked, Why};
use agent_common::h2::edit::Segments;
use agent_common::h2::frame::PREFACE;
use agent_common::h2::walk::{Conn, Source, UNRESOLVED};
use agent_common::vol::{Vol, masked, positive};
use aya_ebpf::helpers::generated::bpf_probe_read_user;

use crate::answers::Ending;
use crate::global::global;

/// Bytes that one read brings in. Most sends of a gRPC client are shorter; bulk data is passed without being read.
pub const WINDOW: u32 = 256;

const _: () = assert!(
    WINDOW.is_power_of_two(),
    "a masked index is always in the window"
);

/// How often in all a system call's memory is read anew where it can't be read. The kernel has just read it itself: it is moving it now, to
/// make a huge page of small ones, or to compact. A program can't wait, and for as long as that it can only try again.
const TRIES: u32 = 1024;

/// Calls that are noted before they are begun: a run of a walk finds half as many at most, since each takes two steps.
pub const BEGUN: u32 = 32;
const _: () = assert!(BEGUN.is_power_of_two());
/// In the place of a class: the client has reset the stream.
pub const RESET: u32 = 254;

/// The bytes that one system call has handed over, up to as many as it says.
#[repr(C)]
pub struct Bytes {
    /// Buffers behind the current one.
    pub buffers: Vol<u32>,
    /// Bytes in them that count.
    pub behind: Vol<u32>,
    /// Bytes of the current buffer from here on.
    pub left: Vol<u32>,
    window_at: Vol<u32>,
    /// Where `struct iovec` of the next buffer lies.
    pub next: Vol<u64>,
    /// Where the next byte lies.
    pub at: Vol<u64>,
    window_len: Vol<u32>,
    /// How often memory that can't be read is read once more.
    tries: Vol<u32>,
    window: [Vol<u8>; WINDOW as usize],
}

/// The state of the walk that runs on this CPU.
#[repr(C)]
pub struct Scratch {
    /// The connection, as the walk changes it. It becomes the map's when the send is over.
    pub tracked: Tracked,
    /// Which connection.
    pub key: ConnKey,
    /// What the connection's status was before.
    pub before: Vol<u32>,
    /// The process's slot.
    pub slot: Vol<u32>,
    /// Bytes that were sent.
    pub total: Vol<u64>,
    /// What its watched calls count as.
    pub verdict: Vol<u32>,
    /// How the send began (`tap`'s code of `track::Begin`).
    pub begun: Vol<u32>,
    /// The gate counts the connection's calls.
    pub gated: Vol<u32>,
    /// The map holds the connection already.
    pub known: Vol<u32>,
    /// There are some requests in `found`.
    pub noted: Vol<u32>,
    /// Not 0 after the first run of an enforcer's walk.
    pub running: Vol<u32>,
    /// A request whose path is still to be looked up in the journal has ended.
    pub pending: Vol<u32>,
    /// Why a call of this send was not rewritten.
    pub failure: Why,
    /// Requests found, by class.
    found: [Vol<u32>; 32],
    /// Where the path in progress lies.
    pub segments: Segments,
    /// Calls that are to be timed: the stream in the lower half, its class in the upper one.
    begun_calls: [Vol<u64>; BEGUN as usize],
    /// Of those whose method isn't known: the table's generation in the lower half, the candidates in the upper one.
    begun_asked: [Vol<u64>; BEGUN as usize],
    begun_count: Vol<u32>,
    /// Calls of this send that were counted as quiet ones, or as what took their place.
    pub quieted: Vol<u32>,
    /// Fills up.
    reserved: Vol<u32>,
    /// The walk that goes on when they have been begun, plus 1; 0 is none.
    pub more: Vol<u32>,
    /// The call that is accounted for.
    pub ending: Ending,
    /// The bytes.
    bytes: Bytes,
    /// A connection's answers of which nothing was seen: what a new connection begins with.
    pub answers: Answers,
}

impl Deref for Scratch {
    type Target = Bytes;

    #[inline(always)]
    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// The place of a class in `Scratch::found`: UNRESOLVED, 255, is 31.
#[inline(always)]
fn class_index(class: u32) -> usize {
    (class & 31) as usize
}

impl Scratch {
    /// Notes a request.
    #[inline(always)]
    pub fn note(&self, class: u32) {
        let found = &self.found[class_index(class)];
        found.set(found.get() + 1);
        self.noted.set(1);
    }

    /// How many of that class were noted; from now on none.
    #[inline(always)]
    pub fn take(&self, class: u32) -> u32 {
        let found = &self.found[class_index(class)];
        let n = found.get();
        if n != 0 {
            found.set(0);
        }
        n
    }

    /// Notes a call that is to be timed, or that the client has reset a stream ([`RESET`]).
    #[inline(always)]
    pub fn call(&self, stream: u32, class: u32) {
        let n = self.begun_count.get();
        if n < BEGUN {
            let at = masked(n, BEGUN - 1) as usize;
            self.begun_calls[at].set(stream as u64 | (class as u64) << 32);
            self.begun_count.set(n + 1);
        }
    }

    /// Notes a call whose method isn't known.
    #[inline(always)]
    pub fn ask(&self, c: &Conn) {
        let n = self.begun_count.get();
        if n < BEGUN {
            let asked = c.generation() as u64 | (c.candidates().0 as u64) << 32;
            self.begun_asked[masked(n, BEGUN - 1) as usize].set(asked);
            self.call(c.stream.get(), UNRESOLVED);
        }
    }

    /// Generation and candidates of one of them.
    #[inline(always)]
    pub fn noted_question(&self, i: u32) -> (u32, u32) {
        let asked = self.begun_asked[masked(i, BEGUN - 1) as usize].get();
        (asked as u32, (asked >> 32) as u32)
    }

    /// How many of these were noted.
    #[inline(always)]
    pub fn calls(&self) -> u32 {
        self.begun_count.get()
    }

    /// Stream and class of one of them.
    #[inline(always)]
    pub fn noted_call(&self, i: u32) -> (u32, u32) {
        let call = self.begun_calls[masked(i, BEGUN - 1) as usize].get();
        (call as u32, (call >> 32) as u32)
    }

    /// Forgets them.
    #[inline(always)]
    pub fn forget_calls(&self) {
        self.begun_count.set(0);
    }
}

impl Bytes {
    /// The bytes that were read last.
    #[inline(always)]
    fn window(&self) -> *mut u8 {
        self.window.as_ptr().cast_mut().cast()
    }

    /// An octet of those that were read last.
    #[inline(always)]
    pub fn octet(&self, at: u32) -> u8 {
        self.window[(at & (WINDOW - 1)) as usize].get()
    }

    /// Brings the first bytes of the send in. Empty buffers in front are rare, and the walk passes them; but how a send begins
    /// is told by its first bytes.
    #[inline(always)]
    pub fn first_buffer(&self) -> Result<(), ()> {
        if self.left.get() == 0 {
            self.next_buffer()?;
        }
        if self.left.get() == 0 {
            self.next_buffer()?;
        }
        if self.left.get() != 0 && self.window_len.get() == 0 {
            self.fill()?;
        }
        Ok(())
    }

    /// Whether the next byte is the preface's first.
    #[inline(always)]
    pub fn may_be_preface(&self) -> bool {
        self.ready() != 0 && self.peek(0) == PREFACE[0]
    }

    /// Stands before a send of `sent` bytes in one buffer.
    #[inline(always)]
    pub fn buffer(&self, address: u64, sent: u32) {
        self.buffers.set(0);
        self.behind.set(0);
        self.at.set(address);
        self.left.set(sent);
        self.empty_window();
    }

    /// Stands before a send of `sent` bytes in `count` buffers, described by `struct iovec`s at `address`.
    #[inline(always)]
    pub fn buffers(&self, address: u64, count: u32, sent: u32) {
        self.buffers.set(count);
        self.behind.set(sent);
        self.next.set(address);
        self.left.set(0);
        self.empty_window();
    }

    /// The kernel has read all of it, or written it: the system call ends.
    #[inline(always)]
    pub fn is_there(&self) {
        self.tries.set(TRIES);
    }

    /// The system call begins: its memory may have to be brought in first, which only the kernel can do.
    #[inline(always)]
    pub fn may_be_away(&self) {
        self.tries.set(0);
    }

    #[inline(always)]
    fn read(&self, address: u64, len: u32) -> Result<(), ()> {
        // SAFETY: the window is WINDOW bytes long and `len` at most that; the helper checks the source itself.
        let failed = unsafe { bpf_probe_read_user(self.window().cast(), len, address as *const _) };
        if failed == 0 { Ok(()) } else { Err(()) }
    }

    /// Reads two words of user memory: `struct iovec`, or the part of `struct msghdr` that says where those are. There must be nothing in
    /// the window.
    #[inline(always)]
    pub fn two_words(&self, address: u64) -> Result<[u64; 2], ()> {
        self.bring_in(address, 16)?;
        // SAFETY: the window is longer than that, and stands behind six words of 8 bytes.
        Ok(unsafe { self.window().cast::<[u64; 2]>().read_volatile() })
    }

    /// Reads `len` bytes of user memory, 1 to [`WINDOW`], to where [`Self::octet`] finds them.
    #[inline(always)]
    pub fn bring_in(&self, address: u64, len: u32) -> Result<(), ()> {
        if self.read(address, len).is_ok() || read_again(self, address, len) != 0 {
            Ok(())
        } else {
            Err(())
        }
    }

    #[inline(always)]
    fn empty_window(&self) {
        self.window_at.set(0);
        self.window_len.set(0);
    }

    /// Goes to the next buffer. `Err` where there is none, or it can't be read.
    #[inline(always)]
    pub fn next_buffer(&self) -> Result<(), ()> {
        let count = self.buffers.get();
        if count == 0 {
            return Err(());
        }
        let at = self.next.get();
        let iovec = self.two_words(at)?;
        let behind = self.behind.get();
        let len = if iovec[1] < behind as u64 {
            iovec[1] as u32
        } else {
            behind
        };
        self.buffers.set(count - 1);
        self.next.set(at + 16);
        self.behind.set(behind - len);
        self.at.set(iovec[0]);
        self.left.set(len);
        self.empty_window();
        Ok(())
    }

    /// Reads the next bytes of the buffer into the window.
    #[inline(always)]
    pub fn fill(&self) -> Result<(), ()> {
        let mut len = self.left.get();
        if len > WINDOW {
            len = WINDOW;
        }
        if len == 0 {
            return Err(());
        }
        self.bring_in(self.at.get(), len)?;
        self.window_at.set(0);
        self.window_len.set(len);
        Ok(())
    }
}

/// Reads again what could not be read. 1: it was. A function that the verifier walks once for all (see [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_again(bytes: *const Bytes, address: u64, len: u32) -> u32 {
    let Some(bytes) = global(bytes) else {
        return 0;
    };
    let len = positive(len, WINDOW - 1);
    for _ in 0..TRIES {
        let left = bytes.tries.get();
        if left == 0 {
            break;
        }
        bytes.tries.set(left - 1);
        if bytes.read(address, len).is_ok() {
            return 1;
        }
    }
    0
}

impl Source for Bytes {
    #[inline(always)]
    fn left(&self) -> u32 {
        self.left.get()
    }

    #[inline(always)]
    fn ready(&self) -> u32 {
        self.window_len.get() - self.window_at.get()
    }

    #[inline(always)]
    fn peek(&self, at: u32) -> u8 {
        let at = self.window_at.get() + at;
        self.window[(at & (WINDOW - 1)) as usize].get()
    }

    #[inline(always)]
    fn pass(&self, n: u32) {
        self.left.set(self.left.get() - n);
        self.at.set(self.at.get() + n as u64);
        let at = self.window_at.get() + n;
        let len = self.window_len.get();
        self.window_at.set(if at < len { at } else { len });
    }
}

impl Source for Scratch {
    #[inline(always)]
    fn left(&self) -> u32 {
        Source::left(&self.bytes)
    }

    #[inline(always)]
    fn ready(&self) -> u32 {
        self.bytes.ready()
    }

    #[inline(always)]
    fn peek(&self, at: u32) -> u8 {
        self.bytes.peek(at)
    }

    #[inline(always)]
    fn pass(&self, n: u32) {
        self.bytes.pass(n);
    }
}
