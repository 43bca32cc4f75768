//! What the C library keeps of memory that is free: an agent that loads once, and then does nearly nothing for weeks, shall not
//! hold what loading took (the description of the kernel's types alone is some 20 MiB).

use std::ops::Range;

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

/// The same of the program's code and constants: what loaded programs, read types and parsed flags is not needed for weeks. What is, comes back
/// from the page cache as it is used.
pub fn forget_code() {
    for segment in unwritten_segments() {
        forget_pages(segment);
    }
}

/// Where the segments of the program's file are in memory that nobody writes to, relocations included: from the first page to the end of the
/// last one. Between two of them the linker may have left pages out, where anything else may be mapped, such as a BPF map.
fn unwritten_segments() -> Vec<Range<usize>> {
    unsafe extern "C" fn first(
        program: *mut libc::dl_phdr_info,
        _: libc::size_t,
        found: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library calls with a description that is valid meanwhile, and with the pointer that it was given, below.
        let (program, found) = unsafe { (&*program, &mut *found.cast::<Vec<Range<usize>>>()) };
        // SAFETY: so many headers are there.
        let headers = unsafe {
            std::slice::from_raw_parts(program.dlpi_phdr, usize::from(program.dlpi_phnum))
        };
        let page = rustix::param::page_size();
        for header in headers {
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
                let begin = (program.dlpi_addr + header.p_vaddr) as usize;
                let end = begin + header.p_memsz as usize;
                found.push(begin / page * page..end.next_multiple_of(page));
            }
        }
        // The program is the first that is told, and the only one that is wanted.
        1
    }
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: the function is called with the pointer to `found`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
    found
}

/// Has the kernel forget which pages of these octets, which are a part of the program's own file, were read: they count as resident otherwise, and
/// nobody needs them any more. Who reads them again gets them from the file.
pub fn forget(octets: &'static [u8]) {
    let page = rustix::param::page_size();
    let begin = octets.as_ptr().addr().next_multiple_of(page);
    let end = (octets.as_ptr().addr() + octets.len()) / page * page;
    forget_pages(begin..end);
}

/// These must be whole pages of a segment of the program's file that nobody writes to.
fn forget_pages(pages: Range<usize>) {
    if pages.is_empty() {
        return;
    }
    let begin = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: they lie in a private mapping of the program's file that nobody writes to, so what is read of them afterwards is what was there.
    let _ = unsafe { rustix::mm::madvise(begin, pages.len(), rustix::mm::Advice::LinuxDontNeed) };
}

#[cfg(test)]
mod tests {
    use procfs::process::{MMPermissions, MMapPath, Process};

    use super::*;

    /// Whatever the linker leaves between them: a page of anything else would be lost.
    #[test]
    fn only_pages_of_the_file_that_nobody_writes_to_are_forgotten() {
        let maps = Process::myself().unwrap().maps().unwrap();
        let this = unwritten_segments as fn() -> _ as usize;
        let constant = "a constant".as_ptr().addr();
        let segments = unwritten_segments();
        for address in [this, constant] {
            let holds = |segment: &Range<usize>| segment.contains(&address);
            assert_eq!(
                segments.iter().filter(|s| holds(s)).count(),
                1,
                "{segments:x?}"
            );
        }
        let of_code = maps.iter().find(|map| {
            let (begin, end) = map.address;
            (begin..end).contains(&(this as u64))
        });
        let file = &of_code.unwrap().pathname;
        assert!(matches!(file, MMapPath::Path(_)), "{file:?}");
        for segment in &segments {
            let (mut at, end) = (segment.start as u64, segment.end as u64);
            while at < end {
                let map = maps
                    .iter()
                    .find(|map| map.address.0 <= at && at < map.address.1);
                let map = map.expect("mapped");
                assert_eq!(&map.pathname, file, "{at:x}");
                assert!(!map.perms.contains(MMPermissions::WRITE), "{at:x}");
                at = map.address.1;
            }
        }
    }
}
