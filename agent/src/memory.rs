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

unsafe extern "C" {
    /// Where the program's file lies in memory, and where its code ends: the linker's (ld's default script, and lld's).
    static __executable_start: u8;
    static etext: u8;
}

/// The same of the program's code: what loaded programs, read types and parsed flags is not needed for weeks. What is, comes back from the
/// page cache as it is used.
pub fn forget_code() {
    let begin = &raw const __executable_start;
    let len = (&raw const etext).addr().saturating_sub(begin.addr());
    // SAFETY: from one symbol to the other lies the program's file as the kernel has mapped it, read-only and for as long as it runs.
    forget(unsafe { std::slice::from_raw_parts(begin, len) });
}

/// Has the kernel forget which pages of these octets, which are a part of the program's own file, were read: they count as resident otherwise, and
/// nobody needs them any more. Who reads them again gets them from the file.
pub fn forget(octets: &'static [u8]) {
    let page = rustix::param::page_size();
    let begin = octets.as_ptr().addr().next_multiple_of(page);
    let end = (octets.as_ptr().addr() + octets.len()) / page * page;
    if begin >= end {
        return;
    }
    let whole = octets.as_ptr().with_addr(begin).cast_mut().cast();
    // SAFETY: these are whole pages of a constant, in a private mapping of the program's file that nobody writes to, so what is read of
    // them afterwards is what was there.
    let _ = unsafe { rustix::mm::madvise(whole, end - begin, rustix::mm::Advice::LinuxDontNeed) };
}
