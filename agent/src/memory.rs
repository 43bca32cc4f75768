//! What the C library keeps of memory that is free: an agent that loads once, and then does nearly nothing for weeks, shall not
//! hold what loading took (the description of the kernel's types alone is some 20 MiB).

/// Makes one heap for all threads. Of the others, the library would give nothing back. Call it before there are threads.
pub fn one_heap() {
    // SAFETY: the call takes two numbers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives memory that is free back to the kernel.
pub fn give_back() {
    // SAFETY: the call takes a number.
    unsafe { libc::malloc_trim(0) };
}
