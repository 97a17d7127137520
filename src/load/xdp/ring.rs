//! The two rings through which an AF_XDP socket and the kernel pass frames: empty ones to the kernel (fill), received ones
//! back (receive). One writer, one reader each; memory shared with the kernel (`Documentation/networking/af_xdp.rst`;
//! its own side is `net/xdp/xsk_queue.h`).
#![expect(unsafe_code, reason = "memory shared with the kernel")]

use memmap2::{MmapOptions, MmapRaw};
use socket2::Socket;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::udp::option_words;

/// Where the parts of a ring lie in its mapping: `struct xdp_ring_offset`.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    producer: usize,
    consumer: usize,
    entries: usize,
    flags: usize,
}

/// A ring's mapping. Both counters run freely and wrap; their difference is what is in the ring.
#[derive(Debug)]
struct Shared {
    map: MmapRaw,
    at: Offsets,
    mask: u32,
}

impl Shared {
    /// Maps the ring of `socket` at `page_offset`, with `entries` entries of type `E`; `index` is its place in
    /// `struct xdp_mmap_offsets`.
    fn map<E>(socket: &Socket, page_offset: u64, index: usize, entries: u32) -> io::Result<Self> {
        let words: [u64; 16] = option_words(socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
        let unusable = || io::Error::new(ErrorKind::Unsupported, "the kernel lays out its rings in an unknown way");
        let word = |at: usize| words.get(4 * index + at).and_then(|word| usize::try_from(*word).ok());
        let [producer, consumer, first, flags] = [0, 1, 2, 3].map(word);
        let at = Offsets {
            producer: producer.ok_or_else(unusable)?,
            consumer: consumer.ok_or_else(unusable)?,
            entries: first.ok_or_else(unusable)?,
            flags: flags.ok_or_else(unusable)?,
        };
        let length = at.entries + entries as usize * size_of::<E>();
        let is_inside = |offset: usize| offset.is_multiple_of(align_of::<AtomicU32>()) && offset + 4 <= length;
        let is_aligned = at.entries.is_multiple_of(align_of::<E>()) && entries.is_power_of_two();
        if !(is_aligned && [at.producer, at.consumer, at.flags].into_iter().all(is_inside)) {
            return Err(unusable());
        }
        let map = MmapOptions::new().offset(page_offset).len(length).populate().map_raw(socket.as_raw_fd())?;
        Ok(Self { map, at, mask: entries - 1 })
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        let pointer = self.map.as_mut_ptr().wrapping_add(at).cast();
        // SAFETY: `map` found `at` aligned and inside the mapping, which lives as long as `self`; the kernel, too, only
        // reads and writes it atomically.
        unsafe { AtomicU32::from_ptr(pointer) }
    }

    /// The place of the entry that a counter stands at.
    fn entry<E>(&self, counter: u32) -> *mut E {
        let index = (counter & self.mask) as usize;
        self.map.as_mut_ptr().wrapping_add(self.at.entries + index * size_of::<E>()).cast()
    }
}

/// Frames received. Ours to read, the kernel's to write.
#[derive(Debug)]
pub(super) struct ReceiveRing {
    shared: Shared,
    /// Entries read so far.
    consumed: u32,
    /// The kernel's counter when last looked at.
    produced: u32,
}

/// A frame in the socket's memory: `struct xdp_desc`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Where it begins.
    pub(super) at: u64,
    /// Its bytes.
    pub(super) length: u32,
}

impl ReceiveRing {
    /// Maps the ring, which must have been given `entries` entries.
    pub(super) fn map(socket: &Socket, entries: u32) -> io::Result<Self> {
        let shared = Shared::map::<libc::xdp_desc>(socket, libc::XDP_PGOFF_RX_RING.cast_unsigned(), 0, entries)?;
        Ok(Self { shared, consumed: 0, produced: 0 })
    }

    /// True when a frame waits.
    pub(super) fn is_ready(&self) -> bool {
        self.shared.word(self.shared.at.producer).load(Ordering::Acquire) != self.consumed
    }

    /// The next frame. It is ours until its place is given back in the fill ring.
    pub(super) fn next(&mut self) -> Option<Received> {
        if self.consumed == self.produced {
            // Acquire: the entries before this count were written before it.
            self.produced = self.shared.word(self.shared.at.producer).load(Ordering::Acquire);
            if self.consumed == self.produced {
                return None;
            }
        }
        let entry: *mut libc::xdp_desc = self.shared.entry(self.consumed);
        // SAFETY: inside the mapping (`entry` masks) and aligned; the kernel wrote it before it raised the producer
        // counter above it, and leaves it alone until `release` raises the consumer counter.
        let entry = unsafe { entry.read() };
        self.consumed = self.consumed.wrapping_add(1);
        Some(Received { at: entry.addr, length: entry.len })
    }

    /// Gives the entries read back to the kernel.
    pub(super) fn release(&self) {
        // Release: our reads of the entries are done before the kernel can see them free.
        self.shared.word(self.shared.at.consumer).store(self.consumed, Ordering::Release);
    }
}

/// Empty frames for the kernel to fill. Ours to write, the kernel's to read.
#[derive(Debug)]
pub(super) struct FillRing {
    shared: Shared,
    /// Entries written so far.
    produced: u32,
}

impl FillRing {
    /// Maps the ring, which must have been given `entries` entries.
    pub(super) fn map(socket: &Socket, entries: u32) -> io::Result<Self> {
        let shared = Shared::map::<u64>(socket, libc::XDP_UMEM_PGOFF_FILL_RING, 2, entries)?;
        Ok(Self { shared, produced: 0 })
    }

    /// Adds the frame that begins `at`. There is always room: the ring has as many entries as there are frames.
    pub(super) fn put(&mut self, at: u64) {
        let entry: *mut u64 = self.shared.entry(self.produced);
        // SAFETY: inside the mapping (`entry` masks) and aligned. The kernel does not read it before `publish`, and has
        // read what stood there: there are no more frames than entries, and this one is not in the ring.
        unsafe { entry.write(at) };
        self.produced = self.produced.wrapping_add(1);
    }

    /// Shows the kernel the frames added.
    pub(super) fn publish(&self) {
        // Release: the entries are written before the kernel sees the count.
        self.shared.word(self.shared.at.producer).store(self.produced, Ordering::Release);
    }

    /// True when the kernel has stopped looking and wants to be told of new frames (`XDP_RING_NEED_WAKEUP`).
    pub(super) fn wants_kick(&self) -> bool {
        self.shared.word(self.shared.at.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}
