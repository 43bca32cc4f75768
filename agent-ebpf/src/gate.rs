//! The gate: stands before the source's end of a connection, and overwrites the paths of calls that are to be rejected
//! before the source can read them.
//!
//! `gate`: sk_skb `stream_verdict`, on the sockets in `GATE`; it goes on by tail call in `gate_walk`. It sees each buffer
//! once, in order, in the context of the sender's system call, before that returns; and it passes every one on. Minimum
//! kernel 5.15 (AF_UNIX stream sockets in socket maps: kernel commit 94531cfcbe79).
//!
//! A connection begins where the tap stands ([`take_place`]), and comes back to it when the source has read something before this
//! program could see it ([`half_read`]).

use agent_common::abi::{
    Failure, GATE_WINDOW, Gated, Manner, Slot, Target, gate as state, gates, verdict,
};
use agent_common::h2::edit::{self, Edit, Named, Placed};
use agent_common::h2::paths::{MAX_PATHS, PathTable};
use agent_common::h2::quiet;
use agent_common::h2::substitute::Substitute;
use agent_common::h2::track::status;
use agent_common::h2::walk::{LATCHED, Outcome, Source, UNRESOLVED, WATCHED};
use agent_common::vol::positive;
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_skb_adjust_room, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::stream_verdict;
use aya_ebpf::programs::SkBuffContext;

use crate::answers;
use crate::global::global;
use crate::maps::{
    CONNECTIONS, GATED, GATES, OBSTACLES, PATHS, SLOTS, SUBSTITUTES, TARGETS, add, control, failed,
    leased, quiet_asked, quieted,
};
use crate::tap::{FAULT, NEXT};

/// Steps that one run of the walk makes; a watched path ends it too. What is done for a path stands before the steps, not in
/// them: the verifier would walk it once a step. So one buffer may take 33 watched calls and some 1,000 steps.
const STEPS: u32 = 32;

/// A step found that the next octet is needed.
const STARVED: u32 = NEXT + 1;
/// A step passed a request whose path can't be known.
const UNKNOWN: u32 = NEXT + 2;

/// What can be cut off a buffer at once (`sk_skb_adjust_room`), and how often that may be: a buffer has 64 KiB at most.
const CUT: u32 = 0xfff;
const CUTS: u32 = 17;

/// `SK_PASS`: the buffer goes to the socket. Nothing else is ever returned.
const PASS: u32 = 1;

#[stream_verdict]
pub fn gate(ctx: SkBuffContext) -> u32 {
    let whole = !half_read(&ctx);
    let Some(g) = gated(&ctx) else {
        return PASS;
    };
    let len = ctx.len();
    if !whole {
        skip(g, len);
        return PASS;
    }
    if !take_place(g, len) {
        return PASS;
    }
    begin(g, 0, len);
    // SAFETY: the program there is of the same type and reads the same context.
    unsafe { GATES.tail_call(&ctx, gates::WALK) };
    lost(g);
    PASS
}

#[stream_verdict]
pub fn gate_walk(ctx: SkBuffContext) -> u32 {
    let Some(g) = gated(&ctx) else {
        return PASS;
    };
    if walk(&ctx, g) {
        // SAFETY: as in `gate`.
        unsafe { GATES.tail_call(&ctx, gates::WALK) };
        lost(g);
    }
    PASS
}

/// Stands before `len` octets of a buffer, the first of them at `at`.
#[inline(always)]
pub fn begin(g: &Gated, at: u32, len: u32) {
    g.offset.set(at);
    g.left.set(len);
    g.window_at.set(0);
    g.window_len.set(0);
    g.segments.forget();
}

/// Does what is to be done for a path that was found, and passes up to [`STEPS`] tokens, or as many as there are before the next such path.
/// Whether there is more.
#[inline(always)]
pub fn walk(ctx: &impl EbpfContext, g: &Gated) -> bool {
    let Some(paths) = PATHS.get_ptr(0) else {
        return false;
    };
    let buffer = Buffer { g, ctx };
    if g.segments.found() {
        edit::apply(&g.conn, &buffer, &g.segments);
        count(g);
    }
    for _ in 0..STEPS {
        if g.left.get() == 0 {
            return false;
        }
        let ended = gate_step(g, paths);
        if ended == UNKNOWN {
            unresolved(g);
        } else if ended != NEXT && (ended != STARVED || buffer.fill().is_err()) {
            // Most likely the source was faster with a buffer before this one, of the same send.
            leave(g, state::JOINING);
            return false;
        }
        if g.segments.found() {
            break;
        }
    }
    true
}

/// One step of the walk: [`NEXT`], [`STARVED`], [`UNKNOWN`] or [`FAULT`]. A function that the verifier walks once for all (see
/// [`crate::global`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn gate_step(g: *const Gated, paths: *const PathTable) -> u32 {
    let (Some(g), Some(paths)) = (global(g), global(paths)) else {
        return FAULT;
    };
    match edit::step(&g.conn, &Window(g), &g.segments, paths, false) {
        Outcome::Request if g.conn.path.get() == UNRESOLVED => UNKNOWN,
        Outcome::Continue | Outcome::Request | Outcome::Reset | Outcome::Data | Outcome::Block => {
            NEXT
        }
        Outcome::Starved => STARVED,
        Outcome::Fault(_) => FAULT,
    }
}

/// The connection that the buffer belongs to: on a Unix socket the cookie is that of the sender.
#[inline(always)]
fn gated<'a>(ctx: &SkBuffContext) -> Option<&'a Gated> {
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: it is a map value; the buffers of one connection pass one after another, and it is written through cells.
    GATED.get_ptr(cookie).map(|g| unsafe { &*g })
}

/// Whether the source has read a part of the buffer, which is then cut off: a reader that comes between a buffer's arrival and
/// this program takes from it what it wants (`unix_bpf_recvmsg` reads the socket's own queue while the map's is empty), and the
/// kernel would hand it the whole buffer again (`unix_stream_read_skb` doesn't look at `consumed`).
#[inline(always)]
fn half_read(ctx: &SkBuffContext) -> bool {
    let at = match control() {
        // SAFETY: it is a word of a map value, which the agent writes before a socket joins.
        Some(control) => unsafe { (&raw const control.consumed_at).read_volatile() },
        None => 0,
    };
    if at == 0 {
        return false;
    }
    let mut consumed = 0u32;
    // SAFETY: the helper itself checks what it reads, and writes the 4 octets of `consumed`.
    let failed = unsafe {
        bpf_probe_read_kernel(
            (&raw mut consumed).cast(),
            4,
            ctx.as_ptr().byte_add((at & 0xff) as usize).cast(),
        )
    };
    if failed != 0 || consumed == 0 {
        return false;
    }
    for _ in 0..CUTS {
        if consumed == 0 {
            break;
        }
        let n = if consumed < CUT { consumed } else { CUT };
        // SAFETY: the helper checks that the buffer is that long.
        if unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast(), -(n as i32), 0, 0) } != 0 {
            break;
        }
        consumed -= n;
    }
    true
}

/// Whether the gate stands exactly before this buffer. The tap has accounted for every byte of the sends before, and the one that
/// brings this buffer is not over; so where the tap stands further on than the gate, the source has read something that the gate
/// never saw, and the gate goes on from where the tap stands. It begins in the same way.
#[inline(always)]
fn take_place(g: &Gated, len: u32) -> bool {
    // SAFETY: both are map values.
    let (Some(tracked), Some(target)) = (unsafe {
        (
            CONNECTIONS.get_ptr(g.key).map(|t| &*t),
            TARGETS.get_ptr(g.key.tgid).map(|t| &*t),
        )
    }) else {
        return false;
    };
    let joining = match g.state.get() {
        state::JOINING => true,
        state::ACTIVE => false,
        _ => return false,
    };
    let sent = tracked.sent.get();
    let passed = g.joined_at + g.seen.get();
    // Of what has passed already, it is not the first buffer of its send; and as long as the agent holds the sends, it hasn't looked
    // whether one got through before the socket was joined.
    if joining && (sent < passed || held(target)) {
        g.seen.set(g.seen.get() + len as u64);
        return false;
    }
    if joining || sent > passed {
        if tracked.epoch != target.epoch
            || target.generation != g.generation
            || tracked.conn.status.get() != status::SYNCED
        {
            if joining {
                g.seen.set(g.seen.get() + len as u64);
            } else {
                lost(g);
            }
            return false;
        }
        g.conn.copy_from(&tracked.conn);
        g.seen.set(sent - g.joined_at);
    } else {
        // The tap's receives tell it what the entries of an older table are.
        g.conn.learn_from(&tracked.conn);
    }
    g.seen.set(g.seen.get() + len as u64);
    tracked.passed.set(g.joined_at + g.seen.get());
    if joining {
        g.state.set(state::ACTIVE);
        tracked.gated.set(1);
        let _ = OBSTACLES.remove(g.key);
        if let Some(slot) = SLOTS.get_ptr_mut(target.slot) {
            // SAFETY: the pointer leads into the slot, which is a map value.
            unsafe { add(&raw mut (*slot).gated, 1) };
        }
    }
    true
}

/// Whether the agent holds the sends of a process, because it joins its connections.
#[inline(always)]
fn held(target: &Target) -> bool {
    match SLOTS.get_ptr(target.slot) {
        // SAFETY: it is a word of a map value, which the agent writes.
        Some(slot) => unsafe { (&raw const (*slot).hold).read_volatile() != 0 },
        None => true,
    }
}

/// Of what is half read, the source knows the beginning: the rest must be what the client sent, and so must all of that send be.
#[inline(always)]
fn skip(g: &Gated, len: u32) {
    // SAFETY: it is a map value.
    let Some(tracked) = CONNECTIONS.get_ptr(g.key).map(|t| unsafe { &*t }) else {
        return;
    };
    // Beyond where the tap stands, which is where this send began.
    let sent = tracked.sent.get();
    if g.joined_at + g.seen.get() < sent {
        g.seen.set(sent - g.joined_at);
    }
    g.seen.set(g.seen.get() + len as u64 + 1);
    if g.state.get() == state::ACTIVE {
        leave(g, state::JOINING);
    }
}

/// The connection can't be followed any more.
#[inline(always)]
fn lost(g: &Gated) {
    leave(g, state::LOST);
}

/// Everything passes, and the tap counts again: for ever, or until the next send, from where the tap stands then.
#[inline(always)]
fn leave(g: &Gated, to: u32) {
    g.state.set(to);
    let _ = OBSTACLES.insert(g.key, Failure::Lost as u32, 0);
    // SAFETY: it is a map value.
    if let Some(tracked) = CONNECTIONS.get_ptr(g.key).map(|t| unsafe { &*t }) {
        tracked.gated.set(0);
    }
    if let Some(target) = target(g)
        && let Some(slot) = SLOTS.get_ptr_mut(target.slot)
    {
        // SAFETY: the pointer leads into the slot, which is a map value.
        unsafe { add(&raw mut (*slot).gated, u64::MAX) };
    }
}

/// The process that sends.
#[inline(always)]
fn target(g: &Gated) -> Option<&'static Target> {
    // SAFETY: it is a map value.
    let target = unsafe { &*TARGETS.get_ptr(g.key.tgid)? };
    if target.generation == g.generation {
        Some(target)
    } else {
        None
    }
}

/// Counts a call by the class of its path: [`LATCHED`] and on were rejected, whatever the policy says now.
#[inline(always)]
fn count(g: &Gated) {
    let class = g.conn.path.get();
    let Some(target) = target(g) else {
        return;
    };
    let Some(slot) = SLOTS.get_ptr_mut(target.slot) else {
        return;
    };
    let (path, column) = if class >= LATCHED {
        latched(g, slot);
        if quiet_asked(target.slot, class - LATCHED) {
            quieted(target.slot, quiet::code(Manner::Enforcer), 1);
        }
        (class - LATCHED, verdict::REJECTED)
    } else if target.verdict == verdict::REJECTED {
        failed(g.segments.failure().unwrap_or(Failure::Lease), 1);
        (class - WATCHED, verdict::ADMITTED)
    } else {
        (class - WATCHED, target.verdict)
    };
    if column != verdict::OFF {
        let path = path as usize & (MAX_PATHS - 1);
        let column = column as usize & (verdict::COUNT - 1);
        // SAFETY: the pointer leads into the slot, which is a map value, and both indices are masked.
        unsafe { add(&raw mut (*slot).calls[path][column], 1) };
        answers::ruled(&g.key, g.conn.stream.get(), column as u32);
    }
}

/// Counts a call whose method is not known.
#[inline(always)]
fn unresolved(g: &Gated) {
    if let Some(target) = target(g)
        && target.verdict != verdict::OFF
        && let Some(slot) = SLOTS.get_ptr_mut(target.slot)
    {
        // SAFETY: the pointer leads into the slot, which is a map value.
        unsafe { add(&raw mut (*slot).unresolved, 1) };
    }
}

/// Notes once that the server's dynamic table has a substitute in it.
#[inline(always)]
fn latched(g: &Gated, slot: *mut Slot) {
    // SAFETY: it is a map value.
    let Some(tracked) = CONNECTIONS.get_ptr(g.key).map(|t| unsafe { &*t }) else {
        return;
    };
    if g.conn.latches() && tracked.latched.get() == 0 {
        tracked.latched.set(1);
        // SAFETY: the pointer leads into the slot, which is a map value.
        unsafe { add(&raw mut (*slot).latched, 1) };
    }
}

/// What of a buffer has been read.
struct Window<'a>(&'a Gated);

/// One buffer of a connection, as paths in it are overwritten.
struct Buffer<'a, C> {
    g: &'a Gated,
    ctx: &'a C,
}

impl<C: EbpfContext> Buffer<'_, C> {
    #[inline(always)]
    fn fill(&self) -> Result<(), ()> {
        let g = self.g;
        let mut len = g.left.get();
        if len > GATE_WINDOW as u32 {
            len = GATE_WINDOW as u32;
        }
        if len == 0 {
            return Err(());
        }
        let len = positive(len, 0xff);
        // SAFETY: the window is GATE_WINDOW bytes long and `len` is at most that; the helper checks the rest itself.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.ctx.as_ptr().cast(),
                g.offset.get(),
                g.window.as_ptr().cast_mut().cast(),
                len,
            )
        };
        if failed != 0 {
            return Err(());
        }
        g.window_at.set(0);
        g.window_len.set(len);
        Ok(())
    }

    #[inline(always)]
    fn store(&self, place: u64, from: *const u8, len: u32) -> Result<(), Failure> {
        if len == 0 {
            return Err(Failure::Unwritable);
        }
        let len = positive(len, 0x7f);
        // SAFETY: `from` leads to `len` bytes of a map value; the helper checks that `place` lies in the buffer.
        let failed = unsafe {
            bpf_skb_store_bytes(self.ctx.as_ptr().cast(), place as u32, from.cast(), len, 0)
        };
        if failed == 0 {
            Ok(())
        } else {
            Err(Failure::Unwritable)
        }
    }
}

impl Source for Window<'_> {
    const RUN: u32 = 1;

    #[inline(always)]
    fn left(&self) -> u32 {
        self.0.left.get()
    }

    #[inline(always)]
    fn ready(&self) -> u32 {
        self.0.window_len.get() - self.0.window_at.get()
    }

    #[inline(always)]
    fn peek(&self, at: u32) -> u8 {
        let at = self.0.window_at.get() + at;
        self.0.window[(at as usize) & (GATE_WINDOW - 1)].get()
    }

    #[inline(always)]
    fn pass(&self, n: u32) {
        let g = self.0;
        g.left.set(g.left.get() - n);
        g.offset.set(g.offset.get() + n);
        let at = g.window_at.get() + n;
        let len = g.window_len.get();
        g.window_at.set(if at < len { at } else { len });
    }
}

impl Placed for Window<'_> {
    #[inline(always)]
    fn place(&self) -> u64 {
        self.0.offset.get() as u64
    }
}

impl<C: EbpfContext> Edit for Buffer<'_, C> {
    #[inline(always)]
    fn substitute(&self, number: u32) -> Option<&Substitute> {
        // SAFETY: it is a map value that the agent wrote before it attached anything.
        SUBSTITUTES.get_ptr(number).map(|s| unsafe { &*s })
    }

    #[inline(always)]
    fn reject(&self, _: u64, _: bool) -> bool {
        match target(self.g) {
            Some(target) => target.verdict == verdict::REJECTED && leased(),
            None => false,
        }
    }

    #[inline(always)]
    fn literal(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> Result<(), Failure> {
        let from = from & 127;
        // SAFETY: behind the spelling lies the substitute's slack, so the place is within the map value.
        let bytes = unsafe { s.spelling.substitute.as_ptr().add(from as usize) };
        self.store(place, bytes, (end - from) & 127)
    }

    #[inline(always)]
    fn undo(&self, place: u64, s: Named<'_>, from: u32, end: u32) -> bool {
        let from = from & 127;
        // SAFETY: as above.
        let bytes = unsafe { s.spelling.watched.as_ptr().add(from as usize) };
        self.store(place, bytes, (end - from) & 127).is_ok()
    }

    #[inline(always)]
    fn index(&self, place: u64, octet: u8) -> Result<(), Failure> {
        let octet = [octet];
        self.store(place, octet.as_ptr(), 1)
    }
}

const _: () = assert!(GATE_WINDOW.is_power_of_two());
