//! A fixed amount of zeroed memory, on huge pages where the kernel gives them, read and written by every core.
//!
//! A random read from a large table costs a third with huge pages (the page tables stay in cache). Pages are touched
//! lazily, or all at once ([`HugeTable::populate`]).
#![expect(unsafe_code, reason = "views of mapped memory, and prefetch instructions")]

use std::sync::atomic::AtomicU64;

use memmap2::{MmapMut, MmapOptions};

/// Words in a cache line.
pub const LINE_WORDS: usize = 8;
/// Bytes of a cache line.
pub const LINE_BYTES: usize = LINE_WORDS * 8;
/// Bytes of a huge page.
const PAGE_BYTES: usize = 2 << 20;

/// One cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line(pub [AtomicU64; LINE_WORDS]);

/// A table of cache lines that starts zeroed and never moves or grows.
#[derive(Debug)]
pub struct HugeTable {
    map: MmapMut,
    lines: usize,
}

impl HugeTable {
    /// Maps `lines` cache lines.
    ///
    /// # Errors
    /// When the kernel refuses the mapping. Refused huge pages are not an error: small ones serve.
    pub fn new(lines: usize) -> std::io::Result<Self> {
        let too_large = || std::io::Error::new(std::io::ErrorKind::OutOfMemory, "the table exceeds the address space");
        let bytes = lines.max(1).checked_mul(LINE_BYTES).and_then(|bytes| bytes.checked_next_multiple_of(PAGE_BYTES));
        let map = MmapOptions::new().len(bytes.ok_or_else(too_large)?).map_anon()?;
        #[cfg(target_os = "linux")]
        let _: std::io::Result<()> = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, lines })
    }

    /// All lines.
    #[inline]
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        // SAFETY: the mapping is page-aligned, at least `lines * 64` bytes long (see `new`), zeroed by the kernel, and
        // lives as long as `self`. Nothing else ever views it, so shared writes go through these atomics alone.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<Line>(), self.lines) }
    }

    /// Touches every page, so that no request pays for the first touch. Takes about 0.3 s a GiB and may run beside
    /// readers and writers. Where the kernel cannot (before Linux 5.14), pages are touched lazily as before.
    pub fn populate(&self) {
        #[cfg(target_os = "linux")]
        for start in (0..self.map.len()).step_by(PAGE_BYTES) {
            let bytes = PAGE_BYTES.min(self.map.len() - start);
            if self.map.advise_range(memmap2::Advice::PopulateWrite, start, bytes).is_err() {
                return;
            }
        }
    }

    /// Bytes mapped.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.map.len()
    }
}

/// Asks the CPU to bring `line` into its cache. Does nothing where Rust has no stable way to ask.
#[inline(always)]
pub fn prefetch<T>(line: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing architecturally, and `line` is a valid address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(line).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_shared() {
        let table = HugeTable::new(1000).unwrap();
        assert_eq!(table.lines().len(), 1000);
        table.populate();
        assert_eq!(table.bytes() % PAGE_BYTES, 0);
        assert_eq!(table.lines().as_ptr().addr() % LINE_BYTES, 0);
        assert!(table.lines().iter().all(|line| line.0.iter().all(|word| word.load(Relaxed) == 0)));
        std::thread::scope(|scope| {
            for start in 0..2 {
                let table = &table;
                let write = move |line: &Line| {
                    prefetch(line);
                    line.0[start].fetch_add(1, Relaxed);
                };
                scope.spawn(move || table.lines().iter().skip(start).step_by(2).for_each(write));
            }
        });
        let sum: u64 = table.lines().iter().flat_map(|line| &line.0).map(|word| word.load(Relaxed)).sum();
        assert_eq!(sum, 1000);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(HugeTable::new(usize::MAX).is_err());
        assert!(HugeTable::new(usize::MAX / LINE_BYTES).is_err());
    }
}
