//! The registers that user space had when it made the system call.
//!
//! Tracepoint programs read them at the *exit* as well: so one program a system call is enough, nothing has to be kept between entry
//! and exit, and a call counts with what it really sent. It takes `bpf_task_pt_regs`, Linux 5.15 (kernel commit
//! dd6e10fbd9fb), and `bpf_get_current_task_btf`, 5.11.

/// Index of the first three arguments in `struct pt_regs`, in words. The layout is ABI on x86_64 (it is what ptrace shows).
#[cfg(bpf_target_arch = "x86_64")]
const ARGS: [usize; 3] = [14, 13, 12]; // rdi, rsi, rdx
/// The return value takes x0's place; what was in it is in `orig_x0`, behind `struct user_pt_regs` (34 words), which is what ptrace
/// shows. Behind that, the layout is the kernel's own (arch/arm64/include/asm/ptrace.h): the same in 6.1 and in 6.12, and `sends` is the
/// test that it still is.
#[cfg(bpf_target_arch = "aarch64")]
const ARGS: [usize; 3] = [34, 1, 2];

/// Index of the system call's number, a word of 4 bytes.
#[cfg(bpf_target_arch = "x86_64")]
const NUMBER: usize = 2 * 15; // orig_rax
#[cfg(bpf_target_arch = "aarch64")]
const NUMBER: usize = 2 * 35; // syscallno

/// Index of the fourth argument.
#[cfg(bpf_target_arch = "x86_64")]
const FOURTH: usize = 7; // r10: `syscall` itself uses rcx
#[cfg(bpf_target_arch = "aarch64")]
const FOURTH: usize = 3;

/// `write`, `writev`, `sendto`.
#[cfg(bpf_target_arch = "x86_64")]
const SENDS: [u32; 3] = [1, 20, 44];
#[cfg(bpf_target_arch = "aarch64")]
const SENDS: [u32; 3] = [64, 66, 206];

/// `read`, `readv`, `recvfrom`.
#[cfg(bpf_target_arch = "x86_64")]
const RECEIVES: [u32; 3] = [0, 19, 45];
#[cfg(bpf_target_arch = "aarch64")]
const RECEIVES: [u32; 3] = [63, 65, 207];

/// The first three arguments.
///
/// # Safety
/// `regs` are the current task's.
#[inline(always)]
pub unsafe fn arguments(regs: *const u64) -> [u64; 3] {
    // SAFETY: the verifier checks each load against the kernel's own type of `struct pt_regs`.
    unsafe {
        [
            regs.add(ARGS[0]).read_volatile(),
            regs.add(ARGS[1]).read_volatile(),
            regs.add(ARGS[2]).read_volatile(),
        ]
    }
}

/// The fourth argument.
///
/// # Safety
/// As of [`arguments`].
#[inline(always)]
pub unsafe fn fourth(regs: *const u64) -> u64 {
    // SAFETY: as in `arguments`.
    unsafe { regs.add(FOURTH).read_volatile() }
}

/// Which send it is: 0 `write`, 1 `writev`, 2 `sendto`, 3 `sendmsg`.
///
/// # Safety
/// As of [`arguments`].
#[inline(always)]
pub unsafe fn send(regs: *const u64) -> u32 {
    // SAFETY: the caller's.
    unsafe { which(regs, SENDS) }
}

/// Which receive it is: 0 `read`, 1 `readv`, 2 `recvfrom`, 3 `recvmsg`.
///
/// # Safety
/// As of [`arguments`].
#[inline(always)]
pub unsafe fn receive(regs: *const u64) -> u32 {
    // SAFETY: the caller's.
    unsafe { which(regs, RECEIVES) }
}

/// Which of these system calls it is, or 3.
///
/// # Safety
/// As of [`arguments`].
#[inline(always)]
unsafe fn which(regs: *const u64, calls: [u32; 3]) -> u32 {
    // SAFETY: as in `arguments`.
    let number = unsafe { regs.cast::<u32>().add(NUMBER).read_volatile() };
    if number == calls[0] {
        0
    } else if number == calls[1] {
        1
    } else if number == calls[2] {
        2
    } else {
        3
    }
}
