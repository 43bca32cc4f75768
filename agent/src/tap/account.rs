//! What the kernel accounts of a program, beyond what aya reads of it.

use std::os::fd::{AsRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_cmd, bpf_prog_info};

use super::sys;

/// The kernel's account of one program since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Runs, while `kernel.bpf_stats_enabled` is on (5.1).
    pub runs: u64,
    /// Nanoseconds in it, likewise; the programs that it continued in by tail call included.
    pub nanoseconds: u64,
    /// Times it was left out because that CPU was within another program or a map operation (5.12; 0 before).
    pub missed: u64,
}

/// Asks the kernel.
pub fn of(program: &OwnedFd) -> Option<Account> {
    // SAFETY: it is a plain C struct of integers for which all zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = sys::nothing();
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info = &raw mut info as u64;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    // SAFETY: `attr` describes `info`, which is as long as it says and outlives the call; an older kernel fills
    // less of it, and the rest stays zero.
    unsafe { sys::bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.ok()?;
    Some(Account {
        runs: info.run_cnt,
        nanoseconds: info.run_time_ns,
        missed: info.recursion_misses,
    })
}
