//! What the kernel is like that the tests run on.

use anyhow::Result;

/// Whether it runs programs of system calls' tracepoints so that they can be preempted.
pub fn preempts_tracepoints() -> Result<bool> {
    let symbols = std::fs::read_to_string("/proc/kallsyms")?;
    Ok(symbols
        .lines()
        .any(|line| line.ends_with(" trace_call_bpf_faultable")))
}
