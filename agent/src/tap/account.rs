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
    /// Times it was left out because that CPU was within another program or a map operation (5.12; 0 before). Of programs that take turns
    /// it isn't known: the kernel says of each how often it was left out, and not how often all were at once.
    pub missed: Option<u64>,
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
        missed: Some(info.recursion_misses),
    })
}

/// The account of programs that take turns, as of one.
pub fn together(all: &[Account]) -> Option<Account> {
    if let [one] = all {
        return Some(*one);
    }
    Some(Account {
        runs: all.iter().map(|one| one.runs).max()?,
        nanoseconds: all.iter().map(|one| one.nanoseconds).sum(),
        missed: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_missed_another_may_have_done() {
        let one = |runs, nanoseconds, missed| Account {
            runs,
            nanoseconds,
            missed,
        };
        assert_eq!(together(&[]), None);
        assert_eq!(together(&[one(7, 70, Some(3))]), Some(one(7, 70, Some(3))));
        let all = [
            one(7, 70, Some(3)),
            one(9, 20, Some(1)),
            one(10, 10, Some(0)),
        ];
        assert_eq!(together(&all), Some(one(10, 100, None)));
    }
}
