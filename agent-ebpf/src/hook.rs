//! What a program hangs on: a tracepoint of a system call, or the kernel function behind that call.
//!
//! | | tracepoint | function (fentry, fexit) |
//! |---|---|---|
//! | place | `syscalls/sys_{enter,exit}_write` | `__x64_sys_write`, `__arm64_sys_write` |
//! | while it is attached | every system call of every process takes the slow path | only that call pays |
//! | preemption | off; since `trace_call_bpf_faultable` (7.1 or 7.2) on | on: another task may run the program of another call meanwhile on the same CPU |
//!
//! Programs of functions continue only in programs that were loaded for a function of the same type (kernel commit 28ead3eaabc1, 6.12),
//! and types are the same for the functions of one source file: [`Files`] and [`Sockets`] have programs of their own.
//!
//! Of one and the same program, the kernel runs no second one on a CPU meanwhile (it skips it, and counts that as a miss); so a
//! place in [`SCRATCH`](crate::maps::SCRATCH) for each program is enough, and nothing less is. So that nothing is lost where programs are
//! preempted, each is there [several times](crate::turns).

use agent_common::abi::turns::{RECEIVES, SENDS};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::{FEntryContext, FExitContext, TracePointContext};

use crate::maps::{WALKS, WALKS_FENTRY, WALKS_FENTRY_NET, WALKS_FEXIT, WALKS_FEXIT_NET};
use crate::{regs, turns};

/// A hook in a system call.
pub trait Hook: EbpfContext {
    /// The registers of user space.
    fn registers(&self) -> *const u64;

    /// The first of the places that the programs of its direction have for sends.
    const FIRST: u32;

    /// Where what the program needs beside its stack lies.
    #[inline(always)]
    fn place(&self) -> u32 {
        // SAFETY: as in `arguments`.
        Self::FIRST + unsafe { regs::send(self.registers()) } + 2 * SENDS * turns::whose()
    }

    /// The same for a receive.
    #[inline(always)]
    fn receive_place(&self) -> u32 {
        // SAFETY: as in `arguments`.
        unsafe { regs::receive(self.registers()) + RECEIVES * turns::whose() }
    }

    /// The programs that continue it.
    fn walks(&self) -> &'static ProgramArray;

    /// The first three arguments.
    #[inline(always)]
    fn arguments(&self) -> [u64; 3] {
        // SAFETY: they are the kernel's own, whose type the verifier knows.
        unsafe { regs::arguments(self.registers()) }
    }

    /// The fourth argument.
    #[inline(always)]
    fn fourth(&self) -> u64 {
        // SAFETY: as in `arguments`.
        unsafe { regs::fourth(self.registers()) }
    }

    /// Continues with the program of [`agent_common::abi::walks`] that has this number, if it is there.
    #[inline(always)]
    fn go_on(&self, number: u32)
    where
        Self: Sized,
    {
        // SAFETY: the program there is of the same type and reads the same context. It returns only where there is none,
        // or after 33 calls.
        unsafe { self.walks().tail_call(self, number) };
    }
}

/// A hook at its exit.
pub trait Exit: Hook {
    /// What it returned.
    fn returned(&self) -> i64;
}

/// A tracepoint at the entry of a system call.
pub struct Entry(pub TracePointContext);

/// A tracepoint at its exit.
pub struct Return(pub TracePointContext);

impl Exit for Return {
    /// `long ret` lies at 16 in the record, on every architecture (the agent checks it against the kernel's `format` file before it
    /// attaches).
    #[inline(always)]
    fn returned(&self) -> i64 {
        // SAFETY: the record of a `sys_exit_*` tracepoint is 24 bytes long; the verifier checks the access.
        unsafe { self.as_ptr().cast::<i64>().add(2).read() }
    }
}

/// The tracepoint that stands for an `fentry`.
pub mod fentry {
    pub use super::Entry as Tracepoint;
}

/// The tracepoint that stands for an `fexit`.
pub mod fexit {
    pub use super::Return as Tracepoint;
}

/// A function of `fs/read_write.c`.
pub struct Files<C>(pub C);

/// A function of `net/socket.c`.
pub struct Sockets<C>(pub C);

/// The only argument of the function of a system call.
#[inline(always)]
fn argument(ctx: &impl EbpfContext) -> *const u64 {
    // SAFETY: the context is an array of the function's arguments; the verifier checks the access.
    unsafe { ctx.as_ptr().cast::<*const u64>().read() }
}

/// What the current task's system call was made with.
#[inline(always)]
fn task_registers(_: &impl EbpfContext) -> *const u64 {
    // SAFETY: both helpers return valid pointers in task context, never null for the current task.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u64 }
}

macro_rules! hooks {
    ($($of:ty, $registers:ident, $array:ident, $first:expr;)*) => {$(
        impl EbpfContext for $of {
            #[inline(always)]
            fn as_ptr(&self) -> *mut core::ffi::c_void {
                self.0.as_ptr()
            }
        }

        impl Hook for $of {
            const FIRST: u32 = $first;

            #[inline(always)]
            fn registers(&self) -> *const u64 {
                $registers(self)
            }

            #[inline(always)]
            fn walks(&self) -> &'static ProgramArray {
                &$array
            }
        }
    )*};
}

hooks! {
    Return, task_registers, WALKS, 0;
    Entry, task_registers, WALKS, SENDS;
    Files<FExitContext>, argument, WALKS_FEXIT, 0;
    Sockets<FExitContext>, argument, WALKS_FEXIT_NET, 0;
    Files<FEntryContext>, argument, WALKS_FENTRY, SENDS;
    Sockets<FEntryContext>, argument, WALKS_FENTRY_NET, SENDS;
}

/// What a function returned stands behind its arguments, of which there is one. (The helper that gives it is 5.17.)
#[inline(always)]
fn returned(ctx: &impl EbpfContext) -> i64 {
    // SAFETY: the context of the exit is that long; the verifier checks the access.
    unsafe { ctx.as_ptr().cast::<i64>().add(1).read() }
}

impl Exit for Files<FExitContext> {
    #[inline(always)]
    fn returned(&self) -> i64 {
        returned(self)
    }
}

impl Exit for Sockets<FExitContext> {
    #[inline(always)]
    fn returned(&self) -> i64 {
        returned(self)
    }
}

/// Programs that are there for each kind of hook, with one body: `TRACEPOINT, FUNCTION OF... |ctx| BODY`, where `OF` is
/// [`Files`] or [`Sockets`]. What the functions' programs are, fentry or fexit, is said in front.
macro_rules! programs {
    ($attribute:ident $context:ident: $(
        $tracepoint:ident, $($function:ident $of:ident),+ |$ctx:ident| $body:expr;
    )*) => {$(
        #[aya_ebpf::macros::tracepoint]
        pub fn $tracepoint(context: aya_ebpf::programs::TracePointContext) -> u32 {
            let $ctx = &crate::hook::$attribute::Tracepoint(context);
            $body
        }

        $(
            #[aya_ebpf::macros::$attribute]
            pub fn $function(context: aya_ebpf::programs::$context) -> u32 {
                let $ctx = &crate::hook::$of(context);
                $body
            }
        )+
    )*};
}
pub(crate) use programs;

/// The same of programs that hang on a system call and [take turns](crate::turns): each is there three times, and knows the how manieth
/// it is.
macro_rules! programs_in_turns {
    ($attribute:ident $context:ident: $(
        $first:ident $second:ident $third:ident,
        $first_function:ident $second_function:ident $third_function:ident
        $of:ident |$ctx:ident| $body:expr;
    )*) => {
        $crate::hook::programs! { $attribute $context: $(
            $first, $first_function $of |$ctx| $crate::turns::take(0, || $body);
            $second, $second_function $of |$ctx| $crate::turns::take(1, || $body);
            $third, $third_function $of |$ctx| $crate::turns::take(2, || $body);
        )* }
    };
}
pub(crate) use programs_in_turns;
