//! A cell whose reads and writes the compiler neither caches nor merges.

use core::cell::UnsafeCell;

/// A value that lives in memory, never in a register across two statements.
///
/// The BPF verifier simulates a loop iteration by iteration and can stop early only where two iterations
/// begin in the same register state. State that LLVM keeps in registers across iterations makes every
/// iteration different, and a walk of a header block then exceeds the verifier's million instructions
/// (measured on 5.10 to 7.2: over the limit with plain fields, 0.4 to 0.6 M with these).
/// So whatever the tracker carries from one step to the next is a `Vol`.
#[repr(transparent)]
pub struct Vol<T>(UnsafeCell<T>);

// SAFETY: in BPF a `static` map only describes its values' type; the values themselves are reached through pointers
// that the kernel hands out, and the program that holds one runs alone on its CPU.
#[cfg(target_arch = "bpf")]
unsafe impl<T> Sync for Vol<T> {}

impl<T: Copy> Vol<T> {
    /// A cell that holds `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value, read from memory.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the pointer comes from a live `&self` and `T: Copy` has no drop glue. The cell is not `Sync`
        // (`UnsafeCell`), so no other thread writes it; in BPF it is memory of the running CPU.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes `value` to memory.
    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.0.get().write_volatile(value) }
    }
}

/// `value & mask`, also where the compiler knows that `value` is no larger: it would leave the `and` out, and a verifier that
/// doesn't know as much (6.1's) would refuse the access that follows.
#[inline(always)]
#[must_use]
pub fn masked(value: u32, mask: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value as u64;
        // SAFETY: it is an `and` of two registers.
        unsafe { core::arch::asm!("{0} &= {1}", inout(reg) value, in(reg) mask as u64) };
        let value = value as u32;
        // SAFETY: that is what the `and` has just made of it.
        unsafe { core::hint::assert_unchecked(value <= mask) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value & mask
    }
}

/// `len`, from 1 to `mask` + 1, so that a verifier sees it: a comparison with 0 tells 6.1's nothing.
#[inline(always)]
#[must_use]
pub fn positive(len: u32, mask: u32) -> u32 {
    masked(len.wrapping_sub(1), mask) + 1
}

/// `value` if `a` is below `b`, else 0; all of them below 2^63. Without a branch: a verifier would follow both ways, and know a number
/// on each, so a search by halves would be as many searches as there are results.
#[inline(always)]
#[must_use]
pub fn if_below(a: u64, b: u64, value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut result = a;
        // SAFETY: these are three instructions on registers.
        unsafe {
            core::arch::asm!(
                "{0} -= {1}",
                "{0} s>>= 63",
                "{0} &= {2}",
                inout(reg) result,
                in(reg) b,
                in(reg) value,
            )
        };
        result
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        if a < b { value } else { 0 }
    }
}

/// `value` if `word` is 0, else `other`; `word` below 2^63. Without a branch, as [`if_below`].
#[inline(always)]
#[must_use]
pub fn if_zero(word: u64, value: u64, other: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut mask = word;
        let mut result = value;
        // SAFETY: these are instructions on registers.
        unsafe {
            core::arch::asm!(
                "{0} += -1",
                "{0} s>>= 63",
                "{1} &= {0}",
                "{0} ^= -1",
                "{0} &= {2}",
                "{1} |= {0}",
                inout(reg) mask,
                inout(reg) result,
                in(reg) other,
            )
        };
        let _ = mask;
        result
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        if word == 0 { value } else { other }
    }
}
