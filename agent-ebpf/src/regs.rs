//! The arguments of the system call that the current task is leaving.
//!
//! They are read at the *exit*, from the registers that the kernel saved at the entry: so one program a system call is
//! enough, nothing has to be kept between entry and exit, and a call counts with what it really sent. It takes
//! `bpf_task_pt_regs`, Linux 5.15 (kernel commit dd6e10fbd9fb), and `bpf_get_current_task_btf`, 5.11.

use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_task_pt_regs};

/// Index of the first three arguments in `struct pt_regs`, in words. The layout is ABI (it is what ptrace shows).
#[cfg(bpf_target_arch = "x86_64")]
const ARGS: [usize; 3] = [14, 13, 12]; // rdi, rsi, rdx
/// The return value takes x0's place; what was in it is in `orig_x0`, behind `struct user_pt_regs` (34 words).
#[cfg(bpf_target_arch = "aarch64")]
const ARGS: [usize; 3] = [34, 1, 2];

/// The first three arguments.
#[inline(always)]
pub fn arguments() -> [u64; 3] {
    // SAFETY: both helpers return valid pointers in task context (never null for the current task), and the verifier
    // checks each load against the kernel's own type of `struct pt_regs`.
    unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u64;
        [
            regs.add(ARGS[0]).read_volatile(),
            regs.add(ARGS[1]).read_volatile(),
            regs.add(ARGS[2]).read_volatile(),
        ]
    }
}
