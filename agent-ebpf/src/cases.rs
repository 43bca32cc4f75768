//! Programs for tests, which no agent loads: the parser as it was built for the kernel, run by `BPF_PROG_TEST_RUN` (classifiers, since
//! neither tracepoints nor socket maps have that) on bytes that the test chooses.
//!
//! | program | runs |
//! |---|---|
//! | `case_send` | the tap's walk on one send, out of the memory of the process that asks for the run |
//! | `case_buffer`, `case_buffer_walk` | the gate's walk on one buffer, which is the packet of the run |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(dead_code, reason = "only the walks of these modules are run")]

mod answers;
mod gate;
mod global;
mod hook;
mod maps;
mod object;
mod regs;
mod rewrite;
mod source;
mod tap;
mod targets;
mod turns;

use agent_common::abi::cases::{CALLS, COOKIE, Case, IN_FRONT, begun, kept};
use agent_common::h2::track::{self, Begin};
use agent_common::h2::walk::{self, Fault};
use agent_common::vol::masked;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::TcContext;

use crate::maps::{GATED, SCRATCH};
use crate::tap::{DONE, FAULT, FRESH, JOIN, MORE, UNREADABLE};

/// The case.
#[map]
static CASE: Array<Case> = Array::with_max_entries(1, 0);

/// `case_buffer_walk`.
#[map]
static CASE_WALKS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Runs of the walk: as many as tail calls may follow each other.
const RUNS: u32 = 33;

#[classifier]
pub fn case_send(_: TcContext) -> i32 {
    // SAFETY: both are map values; nobody else runs a case meanwhile, and they are written through cells.
    let (Some(case), Some(s)) = (unsafe {
        (
            CASE.get_ptr(0).map(|case| &*case),
            SCRATCH.get_ptr(0).map(|s| &*s),
        )
    }) else {
        return 1;
    };
    tap::unfind(s);
    s.take(walk::OTHER);
    if case.buffers == 0 {
        s.buffer(case.address, case.total);
    } else {
        s.buffers(case.address, case.buffers, case.total);
    }
    let c = &case.conn;
    case.begun.set(0);
    case.kept.set(0);
    case.calls.set(0);
    if s.first_buffer().is_err() {
        case.ended.set(UNREADABLE);
        return 0;
    }
    let begin = track::begin(c, s, s.left.get() + s.behind.get());
    case.begun.set(begun(begin));
    case.ended.set(DONE);
    if matches!(begin, Begin::Tls | Begin::Ignore) {
        return 0;
    }
    s.begun.set(if begin == Begin::Join { JOIN } else { FRESH });
    for _ in 0..RUNS {
        case.ended.set(tap::walk(s, c, false));
        if case.ended.get() != MORE {
            break;
        }
    }
    let ended = case.ended.get();
    let fault = if ended >= FAULT {
        Some(Fault::of(ended - FAULT))
    } else {
        None
    };
    if ended == DONE || ended >= FAULT {
        case.kept.set(kept(track::end(c, begin, fault)));
    }
    for class in 0..32 {
        case.found[class as usize].set(s.take(class));
    }
    case.calls.set(s.calls());
    for i in 0..CALLS as u32 {
        let (stream, class) = s.noted_call(i);
        let at = masked(i, CALLS as u32 - 1) as usize;
        case.call[at].set(stream as u64 | (class as u64) << 32);
    }
    0
}

#[classifier]
pub fn case_buffer(ctx: TcContext) -> i32 {
    // SAFETY: it is a map value, and written through cells.
    let Some(g) = GATED.get_ptr(COOKIE).map(|g| unsafe { &*g }) else {
        return 1;
    };
    let len = ctx.len();
    if len < IN_FRONT as u32 {
        return 1;
    }
    gate::begin(g, IN_FRONT as u32, len - IN_FRONT as u32);
    // SAFETY: the program there is of the same type and reads the same context.
    unsafe { CASE_WALKS.tail_call(&ctx, 0) };
    1
}

#[classifier]
pub fn case_buffer_walk(ctx: TcContext) -> i32 {
    // SAFETY: as above.
    let Some(g) = GATED.get_ptr(COOKIE).map(|g| unsafe { &*g }) else {
        return 1;
    };
    if gate::walk(&ctx, g) {
        // SAFETY: as above.
        unsafe { CASE_WALKS.tail_call(&ctx, 0) };
        return 2;
    }
    0
}
