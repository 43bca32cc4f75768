//! Functions that the verifier walks once, by themselves, however often they are called.
//!
//! What a loop does in one round is such a function here: inlined, the verifier would walk it for every round, a million instructions
//! where a few thousand do, and a program would take seconds to load. A global function (kernel 5.6; with pointers for arguments 5.13,
//! kernel commit e5069b9c23b3) has a symbol that others see, and numbers and pointers to types of known size for arguments; it returns a
//! number. Of a pointer it knows nothing but that size, so it must look whether there is one: [`global`].

/// What a function was called with.
#[inline(always)]
pub fn global<'a, T>(pointer: *const T) -> Option<&'a T> {
    // SAFETY: the verifier allows nothing but a pointer to as many bytes as `T` has, here always of a map value, or null; all of these are
    // written through cells.
    unsafe { pointer.as_ref() }
}
