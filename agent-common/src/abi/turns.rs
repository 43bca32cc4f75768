//! How many there are of what programs of system calls need, which take turns where the kernel preempts them.

/// Programs that do the same, at most: as many as the object has of each.
pub const PROGRAMS: u32 = 3;
/// Places of the scratch that the programs at the exits of sends have, and those at their entries: one for each system call.
pub const SENDS: u32 = 4;
/// Places that the programs at the exits of receives have.
pub const RECEIVES: u32 = 4;
/// Threads of watched processes that are known at once. Of others, only the first of each program's turns is taken.
pub const THREADS: u32 = 16384;
