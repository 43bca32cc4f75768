//! The system call, for what aya has no name for.

use std::io;

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// A `bpf_attr` of nothing.
pub fn nothing() -> bpf_attr {
    // SAFETY: it is a plain C union of integers for which all zero is a value.
    unsafe { std::mem::zeroed() }
}

/// `bpf(2)`.
///
/// # Safety
/// What `attr` points to is what `command` asks for, and outlives the call.
pub unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is a whole `bpf_attr`, and the caller answers for what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
