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

/// Values of an array map, mapped into memory.
pub struct Mapping<T> {
    /// Where the mapping begins: at a page.
    start: NonNull<std::ffi::c_void>,
    bytes: usize,
    /// Where the first value is, somewhere in that page.
    base: NonNull<T>,
    len: usize,
    _values: PhantomData<T>,
}

// SAFETY: the memory belongs to the map and is reached only by volatile loads and stores through `&self`.
unsafe impl<T: Send> Send for Mapping<T> {}
// SAFETY: as above; `T` is plain words, so a torn read is a stale counter at worst.
unsafe impl<T: Send> Sync for Mapping<T> {}

/// An array map whose values are mapped for as long as it lives.
pub struct MappedArray<T> {
    values: Mapping<T>,
    _map: MapData,
}

impl<T: Copy> MappedArray<T> {
    /// Maps `len` values of an array map; see [`Mapping::new`].
    pub fn new(map: Map, len: u32) -> Result<Self, std::io::Error> {
        let map = array(map)?;
        Ok(Self {
            values: Mapping::new(&map, 0, len)?,
            _map: map,
        })
    }
}

impl<T> std::ops::Deref for MappedArray<T> {
    type Target = Mapping<T>;

    fn deref(&self) -> &Mapping<T> {
        &self.values
    }
}

/// An array map of which only what is looked at is mapped, while it is looked at: mapped pages count as the agent's memory.
pub struct LargeArray<T> {
    map: MapData,
    len: u32,
    _values: PhantomData<T>,
}

impl<T: Copy> LargeArray<T> {
    /// An array map of `len` values; see [`Mapping::new`].
    pub fn new(map: Map, len: u32) -> Result<Self, std::io::Error> {
        Ok(Self {
            map: array(map)?,
            len,
            _values: PhantomData,
        })
    }

    /// Maps the values from `first` to `last`.
    pub fn part(&self, first: u32, last: u32) -> Result<Mapping<T>, std::io::Error> {
        if first > last || last >= self.len {
            return Err(std::io::Error::other("beyond the end of the array map"));
        }
        Mapping::new(&self.map, first, last - first + 1)
    }
}

fn array(map: Map) -> Result<MapData, std::io::Error> {
    match map {
        Map::Array(data) => Ok(data),
        _ => Err(std::io::Error::other("not an array map")),
    }
}

impl<T: Copy> Mapping<T> {
    /// Maps `len` values from `first` on, all of which the map has. `T` must be the map's value type, a multiple of 8 bytes large, and made
    /// of integers.
    fn new(map: &MapData, first: u32, len: u32) -> Result<Self, std::io::Error> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(8),
                "the kernel lays values out in steps of 8 bytes"
            )
        };
        let page = rustix::param::page_size();
        let from = first as usize * size_of::<T>();
        let lead = from % page;
        let len = len as usize;
        let bytes = (lead + len * size_of::<T>()).div_ceil(page) * page;
        // SAFETY: a new mapping at a place of the kernel's choice; nothing else is touched.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd().as_fd(),
                (from - lead) as u64,
            )
        }?;
        let start = NonNull::new(start)
            .ok_or_else(|| std::io::Error::other("mmap returned a null pointer"))?;
        Ok(Self {
            start,
            bytes,
            // SAFETY: `lead` is below the size of a page, of which there is one at least. It is a multiple of 8, as the sizes of pages and
            // values are.
            base: unsafe { start.byte_add(lead) }.cast(),
            len,
            _values: PhantomData,
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

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: `start` and `bytes` are what `mmap` returned and was asked for, and no reference into it is left.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}
