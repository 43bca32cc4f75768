//! The counters that the programs write, read from memory.
//!
//! They live in array maps that the agent maps into its own memory (`BPF_F_MMAPABLE`, 5.5). A look-up by system call would
//! keep every tracepoint program from running on that CPU meanwhile, and a send that is missed is a call that isn't
//! counted.

use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::maps::{Map, MapData};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// An array map's values, mapped into memory.
pub struct MappedArray<T> {
    base: NonNull<T>,
    len: usize,
    bytes: usize,
    _values: PhantomData<T>,
    _map: MapData,
}

// SAFETY: the memory belongs to the map and is reached only by volatile loads and stores through `&self`.
unsafe impl<T: Send> Send for MappedArray<T> {}
// SAFETY: as above; `T` is plain words, so a torn read is a stale counter at worst.
unsafe impl<T: Send> Sync for MappedArray<T> {}

impl<T: Copy> MappedArray<T> {
    /// Maps `len` values of an array map. `T` must be the map's value type, a multiple of 8 bytes large, and made of
    /// integers.
    pub fn new(map: Map, len: u32) -> Result<Self, std::io::Error> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(8),
                "the kernel lays values out in steps of 8 bytes"
            )
        };
        let Map::Array(data) = map else {
            return Err(std::io::Error::other("not an array map"));
        };
        let len = len as usize;
        let page = rustix::param::page_size();
        let bytes = (len * size_of::<T>()).div_ceil(page) * page;
        // SAFETY: a new mapping at a place of the kernel's choice; nothing else is touched.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                data.fd().as_fd(),
                0,
            )
        }?;
        let base = NonNull::new(base.cast())
            .ok_or_else(|| std::io::Error::other("mmap returned a null pointer"))?;
        Ok(Self {
            base,
            len,
            bytes,
            _values: PhantomData,
            _map: data,
        })
    }

    /// The value at `index`, or `None` beyond the end.
    pub fn get(&self, index: u32) -> Option<T> {
        // SAFETY: the index is in bounds, so the place is mapped and aligned; any bytes are a `T`.
        (self.at(index)).map(|place| unsafe { place.as_ptr().read_volatile() })
    }

    /// Overwrites the value at `index`. Only for values that no program writes any more.
    pub fn set(&self, index: u32, value: T) {
        if let Some(place) = self.at(index) {
            // SAFETY: as in `get`.
            unsafe { place.as_ptr().write_volatile(value) };
        }
    }

    /// A word of the value at `index`, `offset` bytes from its beginning, that programs and agent both write.
    pub fn atomic(&self, index: u32, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || offset + 8 > size_of::<T>() {
            return None;
        }
        let place = self.at(index)?;
        // SAFETY: the word lies within the value, is aligned like it, stays mapped as long as `self`, and is reached by
        // no reference but atomic ones.
        Some(unsafe { AtomicU64::from_ptr(place.as_ptr().byte_add(offset).cast()) })
    }

    fn at(&self, index: u32) -> Option<NonNull<T>> {
        let index = index as usize;
        // SAFETY: below `len`, so within the mapping.
        (index < self.len).then(|| unsafe { self.base.add(index) })
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are what `mmap` returned and was asked for, and no reference into it is left.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
