//! The answer side: follows what watched processes *receive* on their connections, only to find how calls of watched methods end, when,
//! and what a source answers to PendingFn. It changes nothing but one octet in the answer to a quiet call
//! ([`agent_common::h2::quiet`]): `answer_quiet` does, in the receiver's buffer, and is there only while `rewrite` enforces (CAP_SYS_ADMIN,
//! no lockdown).
//!
//! `answer_read`, `answer_readv`, `answer_recvfrom`, `answer_recvmsg`: exits of the receive system calls (tracepoints
//! `syscalls/sys_exit_*`, or, with `_fexit` behind the name, of the functions behind them). They go on by tail call in `answer_walk` (a
//! connection that is followed) or `answer_join` (one that begins or may be joined), and where answers have ended, in `answer_ended`.
//! What begins is noted by the tap's walks, which go on in `answer_begun`. Minimum kernel and privileges are the [`tap`](crate::tap)'s.
//!
//! Payload is passed by its frame's length, without being read, but for short messages while a call is under way that has a pending
//! count for its answer. Where nobody waits for any, a receive in one buffer that has nothing but DATA ends where it began: it takes no walk
//! ([`agent_common::h2::bulk`]).

use agent_common::abi::answers::{
    ASKED, Answers, Asked, BOUNDS_TABLE, BUCKETS, CallEvent, Code, EARLY, Early, GoneKey,
    Histogram, HistogramKey, KEEP_QUIET, MAX_HISTOGRAMS, Message, QUIET as QUIET_CALLS, UNDER_WAY,
    UnderWay, bucket,
};
use agent_common::abi::{ConnKey, Failure, Manner, NO_PENDING, Reason, verdict, walks};
use agent_common::h2::bulk::{self, Ahead, Header};
use agent_common::h2::frame::{HEAD, Head, flag, kind};
use agent_common::h2::learn::{self, Candidates};
use agent_common::h2::paths::MAX_PATHS;
use agent_common::h2::pending::KEPT;
use agent_common::h2::quiet::{self, ANSWER, EDITED, Look};
use agent_common::h2::status::{self, StatusTable};
use agent_common::h2::track::status as state;
use agent_common::h2::walk::{self, Conn, Outcome, Source, phase};
use agent_common::vol::{Vol, if_below, if_zero, masked};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_boot_ns, bpf_probe_read_user, bpf_probe_write_user,
};

use crate::global::global;
use crate::hook::{Exit, Hook, programs, programs_in_turns};
use crate::maps::{
    ANSWERS, BOUNDS, CALLS, CONNECTIONS, FREE_HISTOGRAMS, GONE, HISTOGRAM_KEYS, HISTOGRAM_OF,
    HISTOGRAMS, MESSAGES, RECEIVED, STATUSES, TARGETS, add, answers, calls_lost, closing, exchange,
    failed, only_one, unparsed, unparsed_times, watched,
};
use crate::source::{BEGUN, Bytes, RESET, Scratch};
use crate::tap::{self, DONE, FAULT, MORE, NEXT, Shape, UNREADABLE};

/// Steps that one run of a walk makes, of 33 in a row.
const STEPS: u32 = 48;
/// Ends that one run of a walk notes.
const ENDS: u32 = 16;
const _: () = assert!(ENDS.is_power_of_two());

/// Steps that one run of a look at a quiet call's answer makes.
const LOOKS: u32 = 16;
/// How often an octet of it is written that can't be written: the kernel has just written it itself, and is moving the memory now.
const TRIES: u32 = 256;
/// By how much a stream's number must be below another one's for the place of its quiet call to be the other's: its answer passed unseen (in
/// a receive whose program the kernel skipped, say).
const STALE: u32 = 8 * QUIET_CALLS as u32;
/// A step stands before the answer of a quiet call.
const QUIET: u32 = NEXT + 1;
const _: () = assert!(QUIET < FAULT);

/// `MSG_PEEK`: the bytes are received again.
const PEEK: u64 = 2;

/// Octets of a server's first SETTINGS frame at most: each of its settings takes 6, and there are fewer than 20 of them.
const MAX_SETTINGS: u32 = 120;

/// The state of the walk of a receive that runs on this CPU.
#[repr(C)]
pub struct Received {
    /// Which connection.
    key: ConnKey,
    /// The target's epoch.
    epoch: Vol<u64>,
    /// The process's slot.
    slot: Vol<u32>,
    /// One of these: 0, [`FRESH`], [`JOIN`].
    begun: Vol<u32>,
    /// The walk that goes on behind the ends that were noted, plus 1; 0 is none.
    more: Vol<u32>,
    ended_count: Vol<u32>,
    /// Answers that have ended: the stream in the lower half, a [`Code`] in the upper one.
    ended: [Vol<u64>; ENDS as usize],
    ending: Ending,
    bytes: Bytes,
    /// What a connection becomes that begins or is joined.
    answers: Answers,
}

/// A call that is accounted for. In memory: what lies in registers, the verifier would follow from here on for each of its values.
#[repr(C)]
pub struct Ending {
    /// [`UnderWay::key`]; 0 is none.
    key: Vol<u64>,
    start: Vol<u64>,
    /// 0: it isn't timed.
    end: Vol<u64>,
    /// A [`Code`].
    code: Vol<u64>,
    /// Octets of its message; more than [`KEPT`]: it is longer.
    len: Vol<u64>,
    /// They.
    message: [Vol<u64>; KEPT / 8],
}

/// The receive is the first of its connection.
const FRESH: u32 = 1;
/// The connection is older, and this receive may chain to its end.
const JOIN: u32 = 2;

programs_in_turns! {
    fexit FExitContext:
    answer_read answer_read_2 answer_read_3, answer_read_fexit answer_read_fexit_2 answer_read_fexit_3 Files |ctx| received(ctx, Shape::Buffer, 0);
    answer_readv answer_readv_2 answer_readv_3, answer_readv_fexit answer_readv_fexit_2 answer_readv_fexit_3 Files |ctx| received(ctx, Shape::Vector, 0);
    answer_recvfrom answer_recvfrom_2 answer_recvfrom_3, answer_recvfrom_fexit answer_recvfrom_fexit_2 answer_recvfrom_fexit_3 Sockets |ctx| received(ctx, Shape::Buffer, ctx.fourth());
    answer_recvmsg answer_recvmsg_2 answer_recvmsg_3, answer_recvmsg_fexit answer_recvmsg_fexit_2 answer_recvmsg_fexit_3 Sockets |ctx| received(ctx, Shape::Message, ctx.arguments()[2]);
}

programs! {
    fexit FExitContext:
    answer_walk, answer_walk_fexit Files, answer_walk_fexit_net Sockets |ctx| walked(ctx);
    answer_join, answer_join_fexit Files, answer_join_fexit_net Sockets |ctx| joined(ctx);
    answer_ended, answer_ended_fexit Files, answer_ended_fexit_net Sockets |ctx| ended(ctx);
    answer_quiet, answer_quiet_fexit Files, answer_quiet_fexit_net Sockets |ctx| edits(ctx);
    answer_begun, answer_begun_fexit Files, answer_begun_fexit_net Sockets |ctx| begun(ctx);
}

/// The exit of a receive.
#[inline(always)]
fn received(ctx: &impl Exit, shape: Shape, flags: u64) -> u32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(target) = TARGETS.get_ptr(tgid) else {
        return 0;
    };
    let ret = ctx.returned();
    if ret <= 0 || flags & PEEK != 0 {
        return 0;
    }
    let received = ret as u32;
    let [fd, address, count] = ctx.arguments();
    let key = ConnKey {
        tgid,
        fd: fd as u32,
    };
    // SAFETY: it is a map value.
    let (epoch, slot) = unsafe { ((*target).epoch, (*target).slot) };
    let mut walk = walks::JOIN;
    let mut passed = 0;
    // SAFETY: it is a map value; one connection's receives don't overlap, and it is written through cells.
    if let Some(a) = ANSWERS.get_ptr(key).map(|a| unsafe { &*a })
        && a.epoch == epoch
        && a.conn.status.get() == state::SYNCED
    {
        let c = &a.conn;
        // Within a message that nobody looks at, nothing is read.
        let count = c.count.get();
        if c.phase.get() == phase::SKIP && a.keep.get() == 0 && count > received {
            c.count.set(count - received);
            return 0;
        }
        if let Shape::Buffer = shape
            && a.keep.get() == 0
        {
            passed = bulk::pass(
                c,
                &Buffer {
                    address,
                    answers: a,
                },
                received,
            );
            if passed == received {
                return 0;
            }
        }
        walk = walks::ANSWER;
    } else if received < HEAD {
        return 0;
    }
    let Some(r) = RECEIVED.get_ptr_mut(ctx.receive_place()) else {
        return 0;
    };
    // SAFETY: it is a map value that nobody else has meanwhile.
    unsafe {
        (*r).key = key;
    }
    // SAFETY: as above; from here on it is only read and written through its cells.
    let r = unsafe { &*r };
    r.epoch.set(epoch);
    r.slot.set(slot);
    r.begun.set(0);
    r.more.set(0);
    r.ended_count.set(0);
    r.bytes.is_there();
    match shape {
        Shape::Buffer => r.bytes.buffer(address + passed as u64, received - passed),
        _ => {
            let Ok((iovecs, count)) = shape.vector(&r.bytes, address, count) else {
                return 0;
            };
            r.bytes.buffers(iovecs, count, received);
        }
    }
    ctx.go_on(walk);
    0
}

/// What a connection that is followed receives in one buffer.
struct Buffer<'a> {
    address: u64,
    answers: &'a Answers,
}

impl Ahead for Buffer<'_> {
    #[inline(always)]
    fn read(&self, at: u64, header: &mut Header) -> bool {
        let place = self.address + at;
        // SAFETY: there is room for that many octets; the helper checks the source itself.
        unsafe { bpf_probe_read_user(header.octets().cast(), HEAD, place as *const _) == 0 }
    }

    /// Nobody waits for it for whom [`begin_to_keep`] would do nothing.
    #[inline(always)]
    fn is_awaited(&self, stream: u32) -> bool {
        let a = self.answers;
        a.waiting.get() != 0 || is_quiet(a, stream) || asked(a, stream).key.get() as u32 == stream
    }
}

/// The scratch of the hook that this program continues.
#[inline(always)]
fn scratch<'a>(ctx: &impl Hook) -> Option<&'a Received> {
    // SAFETY: it is a map value that nobody else has meanwhile, and it is written through cells.
    RECEIVED
        .get_ptr(ctx.receive_place())
        .map(|r| unsafe { &*r })
}

/// The answers of a connection.
#[inline(always)]
fn of<'a>(key: &ConnKey) -> Option<&'a Answers> {
    // SAFETY: it is a map value; it is written through cells.
    ANSWERS.get_ptr(key).map(|a| unsafe { &*a })
}

/// Walks a receive of a connection that is followed, in place.
#[inline(always)]
fn walked(ctx: &impl Exit) -> u32 {
    let Some(r) = scratch(ctx) else {
        return 0;
    };
    let Some(a) = of(&r.key) else {
        return 0;
    };
    if a.conn.status.get() != state::SYNCED {
        return 0;
    }
    let ended = steps(r, a, false);
    if ended == QUIET {
        ctx.go_on(walks::QUIET);
    }
    r.more
        .set(if ended == MORE { walks::ANSWER + 1 } else { 0 });
    if ended != MORE && ended != DONE {
        // What has ended is accounted for, but no more can be known.
        a.conn.status.set(state::UNSYNCED);
    }
    if r.ended_count.get() != 0 {
        ctx.go_on(walks::ENDED);
    }
    if ended == MORE {
        ctx.go_on(walks::ANSWER);
    }
    if ended != DONE {
        lose(a);
    }
    0
}

/// The answers of this connection can't be followed any further. Its calls under way stay untimed.
#[inline(always)]
fn lose(a: &Answers) {
    a.conn.status.set(state::UNSYNCED);
    unparsed(Reason::Answer);
    let waiting = a.waiting.get();
    if waiting != 0 {
        unparsed_times(Reason::Untimed, waiting);
        if watched() {
            calls_lost(waiting);
        }
    }
    for call in &a.calls {
        call.key.set(0);
    }
    a.waiting.set(0);
    for stream in &a.quiet {
        if stream.get() != 0 {
            stream.set(0);
            failed(Failure::Unedited, 1);
        }
    }
}

/// Walks a receive of a connection that begins, or that may be joined, in the scratch: only what turns out to be HTTP/2 gets a place
/// in the map.
#[inline(always)]
fn joined(ctx: &impl Exit) -> u32 {
    let Some(r) = scratch(ctx) else {
        return 0;
    };
    let a = &r.answers;
    if r.begun.get() == 0 && !begin(r) {
        return 0;
    }
    let ended = steps(r, a, true);
    if ended == MORE {
        ctx.go_on(walks::JOIN);
        return 0;
    }
    let chains = ended == DONE && a.conn.at_border();
    if !chains && (ended != DONE || r.begun.get() == JOIN) {
        return 0;
    }
    a.conn.status.set(state::SYNCED);
    if let Some(known) = of(&r.key)
        && known.epoch == r.epoch.get()
    {
        known.conn.copy_from(&a.conn);
        return 0;
    }
    a.unclaimed.set((r.begun.get() == FRESH) as u32);
    let _ = ANSWERS.insert(r.key, a, 0);
    0
}

/// Decides how to walk. `false`: not at all.
#[inline(always)]
fn begin(r: &Received) -> bool {
    if answers() == 0 {
        return false;
    }
    let a = &r.answers;
    if r.bytes.first_buffer().is_err() || r.bytes.ready() < HEAD {
        return false;
    }
    let head = Head::read(&r.bytes);
    if head.check(0, true).is_err() {
        return false;
    }
    // SAFETY: it is a map value.
    let connection = CONNECTIONS.get_ptr(r.key).map(|t| unsafe { &*t });
    match connection {
        Some(t) if t.epoch == r.epoch.get() => {
            if t.conn.status.get() != state::SYNCED {
                return false;
            }
            r.begun.set(JOIN);
        }
        _ => {
            // Before its client has said anything, as far as is known yet: a server's preface (RFC 9113 §3.4) is a SETTINGS frame.
            let settings = head.kind == kind::SETTINGS
                && head.flags & flag::ACK == 0
                && head.len <= MAX_SETTINGS;
            if !settings || closing() {
                return false;
            }
            r.begun.set(FRESH);
        }
    }
    a.keep.set(0);
    a.conn.restart();
    // SAFETY: nobody else has this place meanwhile, and `epoch` is the only field that is no cell.
    unsafe {
        (&raw const a.epoch)
            .cast_mut()
            .write_volatile(r.epoch.get())
    };
    true
}

/// Passes up to [`STEPS`] tokens and notes what ended. While a connection is `joining`, nothing of it is known to be under way.
#[inline(always)]
fn steps(r: &Received, a: &Answers, joining: bool) -> u32 {
    let Some(statuses) = STATUSES.get_ptr(0) else {
        return UNREADABLE;
    };
    for _ in 0..STEPS {
        let ended = answer_step(r, a, statuses, joining as u32);
        if ended != NEXT {
            return ended;
        }
    }
    MORE
}

/// One step of it: [`NEXT`], or how the walk ended. A function that the verifier walks once for all (see [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_step(
    r: *const Received,
    a: *const Answers,
    statuses: *const StatusTable,
    joining: u32,
) -> u32 {
    let (Some(r), Some(a), Some(statuses)) = (global(r), global(a), global(statuses)) else {
        return UNREADABLE;
    };
    let c = &a.conn;
    let joining = joining != 0;
    if r.bytes.left.get() == 0 {
        if r.bytes.behind.get() == 0 {
            return DONE;
        }
        if r.bytes.next_buffer().is_err() {
            return UNREADABLE;
        }
        return NEXT;
    }
    if !joining && a.keep.get() != 0 {
        if a.keep_at.get() == KEEP_QUIET {
            return QUIET;
        }
        if r.bytes.ready() == 0 {
            if r.bytes.fill().is_err() {
                return UNREADABLE;
            }
        } else {
            keep(a, &r.bytes);
        }
        return NEXT;
    }
    match walk::step(c, &r.bytes, statuses, joining && r.begun.get() == JOIN) {
        Outcome::Continue | Outcome::Request => return NEXT,
        Outcome::Starved => {
            if r.bytes.fill().is_err() {
                return UNREADABLE;
            }
            return NEXT;
        }
        Outcome::Data => {
            if joining {
                return NEXT;
            }
            begin_to_keep(a, c);
            if !c.ends_stream() {
                return NEXT;
            }
            // No trailers, and so no status.
            note(r, c.stream.get(), Code::Unknown as u32);
        }
        Outcome::Block => {
            if joining || !c.ends_stream() {
                return NEXT;
            }
            note(r, c.stream.get(), status::code(c.path.get()));
        }
        Outcome::Reset => {
            if joining {
                return NEXT;
            }
            note(r, c.stream.get(), Code::Reset as u32);
        }
        Outcome::Fault(fault) => return FAULT + fault as u32,
    }
    if r.ended_count.get() >= ENDS {
        MORE
    } else {
        NEXT
    }
}

/// Edits the answer to a quiet call, as far as it is here.
#[inline(always)]
fn edits(ctx: &impl Exit) -> u32 {
    let Some(r) = scratch(ctx) else {
        return 0;
    };
    let Some(a) = of(&r.key) else {
        return 0;
    };
    for _ in 0..LOOKS {
        if quiet_step(r, a) != NEXT {
            break;
        }
    }
    ctx.go_on(walks::ANSWER);
    // The kernel allows no further one.
    lose(a);
    0
}

/// One step of it: [`NEXT`], or [`DONE`]. A function that the verifier walks once for all (see [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quiet_step(r: *const Received, a: *const Answers) -> u32 {
    let (Some(r), Some(a)) = (global(r), global(a)) else {
        return DONE;
    };
    let bytes = &r.bytes;
    let left = a.keep.get();
    if left == 0 || left > ANSWER {
        return DONE;
    }
    if bytes.left.get() == 0 {
        if bytes.behind.get() == 0 {
            return DONE;
        }
        if bytes.next_buffer().is_err() {
            a.keep.set(0);
        }
        return NEXT;
    }
    if bytes.ready() == 0 {
        if bytes.fill().is_err() {
            a.keep.set(0);
        }
        return NEXT;
    }
    match quiet::look(ANSWER - left, bytes) {
        Look::Same => passed(a, bytes, 1),
        Look::Starved if bytes.left.get() > 1 => {
            if bytes.fill().is_err() {
                a.keep.set(0);
            }
        }
        Look::Tag | Look::Starved => {
            a.keep.set(0);
            if overwrite(bytes.at.get()).is_ok() {
                a.quiet_of(a.conn.stream.get()).set(0);
            }
        }
        // It passes as it is, which is counted when it ends.
        Look::Other => a.keep.set(0),
    }
    NEXT
}

/// Writes the tag of a field that no PendingResponse has.
#[inline(always)]
fn overwrite(place: u64) -> Result<(), ()> {
    let tag = [EDITED];
    for _ in 0..TRIES {
        // SAFETY: `tag` is one octet; the helper checks the destination itself.
        if unsafe { bpf_probe_write_user(place as *mut _, tag.as_ptr().cast(), 1) } == 0 {
            return Ok(());
        }
    }
    Err(())
}

/// Whether a stream is a quiet call's whose answer has not been edited.
#[inline(always)]
fn is_quiet(a: &Answers, stream: u32) -> bool {
    a.quiet_of(stream).get() == stream
}

/// Whether the answer to a call can be edited, if that becomes a quiet one ([`quiet::code`]).
#[inline(always)]
pub fn answerable(key: &ConnKey, epoch: u64, stream: u32) -> u32 {
    let Some(a) = followed(key).filter(|a| a.epoch == epoch) else {
        return quiet::code(Manner::Answers);
    };
    let other = a.quiet_of(stream).get();
    quiet::code(
        if other == 0 || stream.wrapping_sub(other) >= STALE || other == stream {
            Manner::Quiet
        } else {
            Manner::Full
        },
    )
}

/// Notes before it is sent that a call is a quiet one, or isn't (any more).
#[inline(always)]
pub fn set_quiet(key: &ConnKey, stream: u32, is: bool) {
    let Some(a) = followed(key) else {
        return;
    };
    if is {
        let place = a.quiet_of(stream);
        let other = place.get();
        if other != 0 && other != stream {
            failed(Failure::Unedited, 1);
        }
        place.set(stream);
    } else if is_quiet(a, stream) {
        a.quiet_of(stream).set(0);
    }
}

/// Notes that an answer has ended.
#[inline(always)]
fn note(r: &Received, stream: u32, code: u32) {
    let n = r.ended_count.get();
    let at = masked(n, ENDS - 1) as usize;
    r.ended[at].set(stream as u64 | (code as u64) << 32);
    r.ended_count.set(n + 1);
}

/// Behind the header of a DATA frame: if it may belong to an answer with a pending count, its payload is kept.
#[inline(always)]
fn begin_to_keep(a: &Answers, c: &Conn) {
    let len = c.count.get();
    let stream = c.stream.get();
    if len == 0 {
        return;
    }
    if a.quiet_of(stream).get() == stream {
        // Of any other length it passes as it is.
        if len == ANSWER && !c.is_padded() {
            a.keep.set(ANSWER);
            a.keep_at.set(KEEP_QUIET);
        }
        return;
    }
    let asked = asked(a, stream);
    let (at, kept) = if asked.key.get() as u32 == stream {
        (UNDER_WAY as u32 + asked_at(stream), &asked.len)
    } else if a.waiting.get() != 0 {
        let at = find(a, stream);
        if answers() != method_at(a, at) as u64 + 1 {
            return;
        }
        let at = masked(at, UNDER_WAY as u32 - 1);
        (at, &a.lens[at as usize])
    } else {
        return;
    };
    if kept.get() <= KEPT as u32 && len <= KEPT as u32 && kept.get() + len <= KEPT as u32 {
        a.keep.set(len);
        a.keep_at.set(at);
    } else {
        // Longer than any pending count, and so none.
        kept.set(KEPT as u32 + 1);
    }
}

/// Keeps octets of a DATA frame's payload.
#[inline(always)]
fn keep(a: &Answers, bytes: &Bytes) {
    let mut n = a.keep.get();
    if n > bytes.ready() {
        n = bytes.ready();
    }
    let place = a.keep_at.get();
    let (kept, message) = if place >= UNDER_WAY as u32 {
        let asked = &a.asked[masked(place, ASKED as u32 - 1) as usize];
        (&asked.len, asked.message.as_ptr())
    } else {
        let call = masked(place, UNDER_WAY as u32 - 1) as usize;
        (&a.lens[call], a.messages[call].as_ptr())
    };
    let at = kept.get();
    let message = message.cast::<Vol<u8>>();
    let mut i = 0;
    while i < KEPT as u32 {
        if masked(i, 2 * KEPT as u32 - 1) >= n {
            break;
        }
        // SAFETY: the masked place lies within the message.
        unsafe { &*message.add(masked(at + i, KEPT as u32 - 1) as usize) }.set(bytes.peek(i));
        i += 1;
    }
    kept.set(at + n);
    passed(a, bytes, n);
}

/// Passes octets that are looked at.
#[inline(always)]
fn passed(a: &Answers, bytes: &Bytes, n: u32) {
    let c = &a.conn;
    bytes.pass(n);
    a.keep.set(a.keep.get() - n);
    let left = c.count.get() - n;
    c.count.set(left);
    if left == 0 {
        c.phase.set(phase::HEAD);
    }
}

/// The place of the call under way on `stream`, or [`UNDER_WAY`]. Mostly it is the first one that is looked at; behind that there is no
/// branch, because the verifier would follow each, with all that comes behind it.
#[inline(always)]
fn find(a: &Answers, stream: u32) -> u32 {
    let first = masked(UnderWay::place(stream), UNDER_WAY as u32 - 1);
    if a.calls[first as usize].key.get() as u32 == stream {
        return first;
    }
    let mut found = UNDER_WAY as u64;
    for at in 0..UNDER_WAY {
        let key = a.calls[at].key.get() as u32;
        found = if_zero((key ^ stream) as u64, at as u64, found);
    }
    masked(found as u32, 2 * UNDER_WAY as u32 - 1)
}

/// The place of a stream's number in [`Answers::asked`].
#[inline(always)]
fn asked_at(stream: u32) -> u32 {
    masked(UnderWay::place(stream), ASKED as u32 - 1)
}

/// The place for a call on that stream whose method isn't known.
#[inline(always)]
fn asked(a: &Answers, stream: u32) -> &Asked {
    &a.asked[asked_at(stream) as usize]
}

/// The method of the call at a place; one that no method has where there is none.
#[inline(always)]
fn method_at(a: &Answers, at: u32) -> u32 {
    if at >= UNDER_WAY as u32 {
        return u32::MAX;
    }
    let key = a.calls[masked(at, UNDER_WAY as u32 - 1) as usize].key.get();
    UnderWay::of(key).1
}

/// Takes the call under way on `stream` away, if there is one. Whoever gets it accounts for it.
#[inline(always)]
fn take(a: &Answers, stream: u32, ending: &Ending) {
    let at = find(a, stream);
    if at >= UNDER_WAY as u32 {
        return;
    }
    let at = masked(at, UNDER_WAY as u32 - 1) as usize;
    let call = &a.calls[at];
    // Before the place is free: another thread of the client may begin a call there.
    ending.start.set(call.start.get());
    ending.len.set(a.lens[at].get() as u64);
    for word in 0..KEPT / 8 {
        ending.message[word].set(a.messages[at][word].get());
    }
    let key = exchange(&call.key, 0);
    if key as u32 != stream {
        return;
    }
    // SAFETY: the counter is a word of a map value.
    unsafe { add(core::ptr::from_ref(&a.waiting).cast_mut().cast(), u64::MAX) };
    ending.key.set(key);
}

/// Accounts for the answers that have ended.
#[inline(always)]
fn ended(ctx: &impl Exit) -> u32 {
    let Some(r) = scratch(ctx) else {
        return 0;
    };
    let Some(a) = of(&r.key) else {
        return 0;
    };
    r.ending.end.set(now());
    for i in 0..ENDS {
        if answer_end(r, a, i) != NEXT {
            break;
        }
    }
    r.ended_count.set(0);
    let more = r.more.get();
    if more != 0 {
        ctx.go_on(walks::ANSWER);
    }
    if more != 0 || a.conn.status.get() != state::SYNCED {
        lose(a);
    }
    0
}

/// Accounts for the end of this number: [`NEXT`], or [`DONE`] where there is none. A function that the verifier walks once for all (see
/// [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_end(r: *const Received, a: *const Answers, i: u32) -> u32 {
    let (Some(r), Some(a)) = (global(r), global(a)) else {
        return DONE;
    };
    if i >= r.ended_count.get() {
        return DONE;
    }
    let e = &r.ending;
    let end = r.ended[masked(i, ENDS - 1) as usize].get();
    let (stream, code) = (end as u32, end >> 32);
    if is_quiet(a, stream) {
        a.quiet_of(stream).set(0);
        if code == Code::Ok as u64 {
            failed(Failure::Unedited, 1);
        }
    }
    e.code.set(code);
    e.key.set(0);
    take(a, stream, e);
    if e.key.get() == 0 && asked(a, stream).key.get() as u32 == stream {
        // Whatever its status, which may be an index of the server's that isn't known: a message is one.
        learn(r, asked(a, stream));
        asked(a, stream).key.set(0);
        return NEXT;
    }
    if e.key.get() == 0 {
        // Another method's, or its request is still being accounted for, by another thread. One of the two sees the other.
        let early = &a.early[masked(UnderWay::place(stream), EARLY as u32 - 1) as usize];
        early.at.set(e.end.get());
        early.set(stream, code as u32);
        take(a, stream, e);
        if e.key.get() != 0 {
            early.set(0, 0);
        }
    }
    if e.key.get() != 0 {
        account(r.key, r.slot.get(), e);
    }
    NEXT
}

/// A call whose method isn't known was answered: the message may tell which method it was.
#[inline(always)]
fn learn(r: &Received, asked: &Asked) {
    // SAFETY: it is a map value.
    let Some(tracked) = CONNECTIONS.get_ptr(r.key).map(|t| unsafe { &*t }) else {
        return;
    };
    let pending = answers();
    if tracked.epoch != r.epoch.get() || pending == 0 || pending > MAX_PATHS as u64 {
        return;
    }
    let message = asked.message.as_ptr().cast::<Vol<u8>>();
    let answer = learn::answer(asked.len.get(), |at| {
        // SAFETY: the masked place lies within the message.
        unsafe { &*message.add(masked(at, KEPT as u32 - 1) as usize) }.get() as u32
    });
    tracked.conn.learn(
        asked.generation.get(),
        Candidates((asked.key.get() >> 32) as u32),
        answer,
        walk::WATCHED + pending as u32 - 1,
        only_one(),
    );
}

trait SetEarly {
    /// Sets stream and code, which are one word, with a full barrier.
    fn set(&self, stream: u32, code: u32);
}

impl SetEarly for Early {
    #[inline(always)]
    fn set(&self, stream: u32, code: u32) {
        // SAFETY: `Early` begins with two words of 4 bytes and is 8 bytes aligned.
        let place = unsafe { &*core::ptr::from_ref(self).cast::<Vol<u64>>() };
        exchange(place, stream as u64 | (code as u64) << 32);
    }
}

/// Nanoseconds since boot.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Begins the calls that the tap has noted in a send, and ends those that the client has reset.
#[inline(always)]
fn begun(ctx: &impl Exit) -> u32 {
    let Some(s) = tap::scratch(ctx) else {
        return 0;
    };
    let a = followed(&s.key).map_or(core::ptr::null(), core::ptr::from_ref);
    for i in 0..BEGUN {
        if answer_begin(s, a, i) != NEXT {
            break;
        }
    }
    s.forget_calls();
    let more = s.more.get();
    s.more.set(0);
    if more != 0 {
        ctx.go_on(more - 1);
        tap::too_long(s, more - 1);
    }
    0
}

/// Begins the call of this number, or ends it: [`NEXT`], or [`DONE`] where there is none. A function that the verifier walks once for all
/// (see [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_begin(s: *const Scratch, a: *const Answers, i: u32) -> u32 {
    let (Some(s), a) = (global(s), global(a)) else {
        return DONE;
    };
    if i >= s.calls() {
        return DONE;
    }
    let e = &s.ending;
    let (stream, class) = s.noted_call(i);
    e.key.set(0);
    e.end.set(now());
    if class == RESET {
        if let Some(a) = a {
            if is_quiet(a, stream) {
                a.quiet_of(stream).set(0);
            }
            e.code.set(Code::Cancelled as u64);
            take(a, stream, e);
        }
    } else if class == walk::UNRESOLVED {
        if let Some(a) = a {
            ask(a, stream, s.noted_question(i));
        }
    } else {
        let (method, becomes) = tap::sorted(s, class, || ruling(a, stream));
        if becomes != verdict::OFF {
            begin_call(a, stream, UnderWay::key(stream, method, becomes), e);
        }
    }
    if e.key.get() != 0 {
        account(s.key, s.slot.get(), e);
    }
    NEXT
}

/// The answers of a connection, if they are followed.
#[inline(always)]
fn followed<'a>(key: &ConnKey) -> Option<&'a Answers> {
    match of(key) {
        Some(a) if a.conn.status.get() == state::SYNCED => Some(a),
        _ => None,
    }
}

/// A call has been sent. What is to be accounted for at once is in `ending`: a call that can't be timed, or one that has been
/// answered already (the answer was received by another thread).
#[inline(always)]
fn begin_call(a: Option<&Answers>, stream: u32, call: u64, ending: &Ending) {
    let now = ending.end.get();
    if let Some(a) = a
        && place(a, stream, call, now)
    {
        let early = &a.early[masked(UnderWay::place(stream), EARLY as u32 - 1) as usize];
        if early.stream.get() == stream {
            ending.code.set(early.code.get() as u64);
            ending.end.set(early.at.get());
            take(a, stream, ending);
            early.set(0, 0);
        }
        return;
    }
    ending.key.set(call);
    ending.start.set(now);
    ending.end.set(0);
    ending.len.set(0);
}

/// Notes a call whose method isn't known.
#[inline(always)]
fn ask(a: &Answers, stream: u32, (generation, candidates): (u32, u32)) {
    let asked = asked(a, stream);
    // Nobody keeps an answer there meanwhile.
    exchange(&asked.key, 0);
    asked.generation.set(generation);
    asked.len.set(0);
    exchange(&asked.key, stream as u64 | (candidates as u64) << 32);
}

/// The gate has ruled on a call. The tap begins it, when the send is over.
#[inline(always)]
pub fn ruled(key: &ConnKey, stream: u32, verdict: u32) {
    if let Some(a) = of(key) {
        let place = masked(UnderWay::place(stream), UNDER_WAY as u32 - 1);
        a.gated[place as usize].set(stream as u64 | (verdict as u64) << 32);
    }
}

/// What the gate said of a call; [`verdict::OFF`]: nothing.
#[inline(always)]
fn ruling(a: Option<&Answers>, stream: u32) -> u32 {
    let Some(a) = a else {
        return verdict::OFF;
    };
    let place = masked(UnderWay::place(stream), UNDER_WAY as u32 - 1);
    let ruling = a.gated[place as usize].get();
    if ruling as u32 == stream {
        (ruling >> 32) as u32
    } else {
        verdict::OFF
    }
}

/// Puts a call in a free place. `false`: there is none.
#[inline(always)]
fn place(a: &Answers, stream: u32, call: u64, now: u64) -> bool {
    let mut at = masked(UnderWay::place(stream), UNDER_WAY as u32 - 1);
    if a.calls[at as usize].key.get() != 0 {
        let mut free = UNDER_WAY as u64;
        for at in 0..UNDER_WAY {
            free = if_zero(a.calls[at].key.get(), at as u64, free);
        }
        at = masked(free as u32, 2 * UNDER_WAY as u32 - 1);
        if at >= UNDER_WAY as u32 {
            return false;
        }
    }
    let place = &a.calls[masked(at, UNDER_WAY as u32 - 1) as usize];
    place.start.set(now);
    a.lens[masked(at, UNDER_WAY as u32 - 1) as usize].set(0);
    // SAFETY: the counter is a word of a map value.
    unsafe { add(core::ptr::from_ref(&a.waiting).cast_mut().cast(), 1) };
    exchange(&place.key, call);
    true
}

/// A connection's descriptor is closed. If calls are under way, they are the agent's to account for: they ended with it.
#[inline(always)]
pub fn closed(key: ConnKey, epoch: u64) {
    let Some(a) = of(&key) else {
        return;
    };
    let waiting = a.waiting.get();
    if waiting != 0 && a.epoch == epoch && a.conn.status.get() == state::SYNCED {
        let gone = GoneKey { key, at: now() };
        if GONE.insert(gone, a, 0).is_err() {
            unparsed_times(Reason::Untimed, waiting);
        }
    }
    let _ = ANSWERS.remove(key);
}

/// Accounts for a call that ended.
#[inline(always)]
fn account(key: ConnKey, slot: u32, e: &Ending) {
    let (_, method, became) = UnderWay::of(e.key.get());
    // The source never saw it: it is no answer of the source's.
    if became == verdict::REJECTED && e.code.get() == Code::Ok as u64 {
        e.code.set(Code::Quiet as u64);
    }
    if e.end.get() == 0 {
        unparsed(Reason::Untimed);
        tell(key, slot, e);
        return;
    }
    // The time of an answer that came before its request's send was over counts as none.
    let took = if_below(e.start.get(), e.end.get(), e.end.get() - e.start.get());
    match histogram(HistogramKey::new(slot, method, e.code.get() as u32)) {
        Some(histogram) => record(histogram, took),
        None => unparsed(Reason::Untimed),
    }
    let len = e.len.get();
    if len != 0 && len <= KEPT as u64 && e.code.get() == Code::Ok as u64 {
        publish(slot, method, e);
    }
    tell(key, slot, e);
}

/// Adds a duration.
#[inline(always)]
fn record(histogram: *mut Histogram, took: u64) {
    let Some(bounds) = BOUNDS.get_ptr(0) else {
        return;
    };
    // SAFETY: it is a map value that the agent wrote before it attached anything.
    let at = bucket(unsafe { &*bounds }, took);
    let at = masked(at as u32, BOUNDS_TABLE as u32 - 1);
    if at as usize >= BUCKETS {
        return;
    }
    // SAFETY: the pointers lead into the map's value: the index is below the array's length.
    unsafe {
        add(&raw mut (*histogram).sum, took);
        let buckets = (&raw mut (*histogram).buckets).cast::<u64>();
        add(buckets.add(at as usize), 1);
    }
}

/// The histogram of a key, which gets one if it has none.
#[inline(always)]
fn histogram(key: HistogramKey) -> Option<*mut Histogram> {
    // SAFETY: it is a map value.
    if let Some(number) = HISTOGRAM_OF.get_ptr(key).map(|n| unsafe { *n }) {
        return HISTOGRAMS.get_ptr_mut(number);
    }
    let number = FREE_HISTOGRAMS.pop().ok().flatten()?;
    if number == 0 || number >= MAX_HISTOGRAMS {
        return None;
    }
    let histogram = HISTOGRAMS.get_ptr_mut(number)?;
    let whose = HISTOGRAM_KEYS.get_ptr_mut(number)?;
    /// `BPF_NOEXIST`: another CPU may be doing the same.
    const NEW_ONLY: u64 = 1;
    if HISTOGRAM_OF.insert(key, number, NEW_ONLY).is_err() {
        let _ = FREE_HISTOGRAMS.push(number, 0);
        // SAFETY: as above.
        let number = HISTOGRAM_OF.get_ptr(key).map(|n| unsafe { *n })?;
        return HISTOGRAMS.get_ptr_mut(number);
    }
    // SAFETY: the pointer leads into the map's value, a word of 8 bytes, which the agent reads.
    unsafe { whose.write_volatile(key) };
    Some(histogram)
}

/// Keeps the message of an answer for the agent.
#[inline(always)]
fn publish(slot: u32, method: u32, e: &Ending) {
    let Some(message) = MESSAGES.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: the pointers lead into the map's value, whose words are 8 bytes aligned. Who finds the lock taken leaves it: another
    // connection's answer is as new.
    unsafe {
        let lock = &*(&raw const (*message).lock).cast::<Vol<u64>>();
        if exchange(lock, 1) != 0 {
            return;
        }
        let octets = (&raw mut (*message).octets).cast::<u64>();
        for word in 0..KEPT / 8 {
            octets.add(word).write_volatile(e.message[word].get());
        }
        (&raw mut (*message).len).write_volatile((method as u64) << 32 | e.len.get());
        (&raw mut (*message).at).write_volatile(e.end.get());
        let written = &*(&raw const (*message).written).cast::<Vol<u64>>();
        exchange(written, written.get() + 1);
        exchange(lock, 0);
    }
}

const _: () =
    assert!(core::mem::offset_of!(Message, octets).is_multiple_of(8) && KEPT.is_multiple_of(8));
const _: () = assert!(NO_PENDING > MAX_PATHS as u64 && verdict::COUNT <= 256);

/// Tells who watches of a call.
#[inline(always)]
fn tell(key: ConnKey, slot: u32, e: &Ending) {
    if !watched() {
        return;
    }
    /// `BPF_RB_NO_WAKEUP`: the agent looks by itself, while somebody watches.
    const QUIETLY: u64 = 1;
    let Some(mut entry) = CALLS.reserve::<CallEvent>(0) else {
        calls_lost(1);
        return;
    };
    let (stream, method, verdict) = UnderWay::of(e.key.get());
    let event = entry.as_mut_ptr();
    // SAFETY: the entry is as large as the event, and every field is written.
    unsafe {
        (*event).start = e.start.get();
        (*event).end = e.end.get();
        (*event).tgid = key.tgid;
        (*event).slot = slot;
        (*event).fd = key.fd;
        (*event).stream = stream;
        (*event).method = method;
        (*event).verdict = verdict;
        (*event).code = e.code.get() as u32;
        (*event).len = e.len.get() as u32;
        let octets = (&raw mut (*event).octets).cast::<u64>();
        for word in 0..KEPT / 8 {
            octets.add(word).write_volatile(e.message[word].get());
        }
    }
    entry.submit(QUIETLY);
}
