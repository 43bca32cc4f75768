//! How many programs do the same, and take turns (agent-ebpf's `turns`): one, but where the kernel preempts programs.

use std::path::Path;
use std::sync::OnceLock;

use agent_common::abi::turns::PROGRAMS;

use crate::enforce::kernels;

/// How many there are of each program of a system call on this kernel.
pub fn here() -> u32 {
    static FOUND: OnceLock<u32> = OnceLock::new();
    *FOUND.get_or_init(|| match kernels::preempts(Path::new(kernels::SYMBOLS)) {
        Ok(true) => PROGRAMS,
        Ok(false) => 1,
        Err(reason) => {
            tracing::warn!("can't tell whether this kernel preempts programs, and takes it that it doesn't: {reason}");
            1
        }
    })
}

/// The order to attach programs in, so that the kernel runs them in the order of their numbers. It appends those of a tracepoint, and puts
/// those of a function in front of each other.
pub fn in_order<T: Copy>(numbers: &[T], of_function: bool) -> Vec<T> {
    let mut order = numbers.to_vec();
    if of_function {
        order.reverse();
    }
    order
}
