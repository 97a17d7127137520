//! An AF_XDP socket: frames of one receive queue of one interface, in memory that the kernel writes to.
#![expect(unsafe_code, reason = "frames in memory shared with the kernel")]

use memmap2::{MmapOptions, MmapRaw};
use socket2::Socket;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::super::udp::{option_words, set_option};
use super::ring::{FillRing, ReceiveRing};
use super::sys;

/// Bytes of a frame's place: 256 of them the kernel keeps before the frame, so frames of 1,792 bytes fit. Longer ones,
/// which only a larger MTU than Ethernet's lets through, are dropped; a beacon has at most 1,200 bytes.
const FRAME: u32 = 2048;
/// Frames read before they are given back.
const BATCH: usize = 64;
/// The kernel demands a completion ring (of frames sent) though nothing is sent: the smallest.
const COMPLETION_ENTRIES: i32 = 64;
/// Microseconds that the kernel polls the driver for, and frames it takes a poll, when busy.
const BUSY_MICROSECONDS: i32 = 20;
const BUSY_FRAMES: i32 = 64;

/// A socket bound to one receive queue. Closing it gives the queue's datagrams back to the kernel.
#[derive(Debug)]
pub(in crate::load) struct XdpSocket {
    receive: ReceiveRing,
    fill: FillRing,
    socket: Socket,
    /// Last, so that it outlives the socket and the rings.
    memory: MmapRaw,
}

/// What the kernel counts at a socket: `struct xdp_statistics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::load) struct Statistics {
    /// Frames dropped because none was left to fill, or they were too long for one.
    pub(in crate::load) dropped: u64,
    /// Frames dropped because the receive ring was full.
    pub(in crate::load) ring_full: u64,
    /// Times that the kernel wanted a frame and the fill ring had none.
    pub(in crate::load) fill_empty: u64,
}

impl XdpSocket {
    /// Opens a socket with `frames` frames, a power of two, for `queue` of the interface with index `interface`.
    ///
    /// The frames are copied once from the driver's (`XDP_COPY`), though some drivers could do without: then every frame
    /// of the queue would be received into this memory, and those that are not beacons, nearly all, copied out of it.
    pub(in crate::load) fn open(interface: u32, queue: u32, frames: u32) -> io::Result<Self> {
        let socket = sys::socket()?;
        let bytes = frames as usize * FRAME as usize;
        let memory = MmapRaw::from(MmapOptions::new().len(bytes).populate().map_anon()?);
        // SAFETY: the mapping is page-aligned and `bytes` long; it lives in the same value as the socket and its rings
        // and is dropped after them; it is only viewed in `frame`, frame by frame.
        unsafe { sys::register(&socket, memory.as_mut_ptr(), bytes, FRAME) }?;
        let entries = i32::try_from(frames).unwrap_or(0);
        set_option(&socket, libc::SOL_XDP, libc::XDP_RX_RING, entries)?;
        set_option(&socket, libc::SOL_XDP, libc::XDP_UMEM_FILL_RING, entries)?;
        set_option(&socket, libc::SOL_XDP, libc::XDP_UMEM_COMPLETION_RING, COMPLETION_ENTRIES)?;
        let receive = ReceiveRing::map(&socket, frames)?;
        let mut fill = FillRing::map(&socket, frames)?;
        (0..frames).for_each(|frame| fill.put(u64::from(frame * FRAME)));
        fill.publish();
        sys::bind(&socket, interface, queue, libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP)?;
        Ok(Self { receive, fill, socket, memory })
    }

    /// Asks the kernel to poll the driver from the reader's thread. Needs a capability for some of it; what is refused
    /// only costs time.
    pub(in crate::load) fn busy_poll(&self) {
        for (name, value) in [
            (libc::SO_PREFER_BUSY_POLL, 1),
            (libc::SO_BUSY_POLL, BUSY_MICROSECONDS),
            (libc::SO_BUSY_POLL_BUDGET, BUSY_FRAMES),
        ] {
            let _ = set_option(&self.socket, libc::SOL_SOCKET, name, value);
        }
    }

    /// True when a frame waits. Costs no system call.
    pub(in crate::load) fn is_ready(&self) -> bool {
        self.receive.is_ready()
    }

    /// Lets the driver work; see [`sys::kick`].
    pub(in crate::load) fn kick(&self) {
        sys::kick(&self.socket);
    }

    /// Shows up to a batch of frames to `f`; returns how many. Does not block.
    pub(in crate::load) fn receive(&mut self, mut f: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < BATCH
            && let Some(received) = self.receive.next()
        {
            let frame = frame(&self.memory, received.at, received.length);
            f(frame);
            self.fill.put(received.at & !u64::from(FRAME - 1));
            count += 1;
        }
        if count > 0 {
            self.receive.release();
            self.fill.publish();
            if self.fill.wants_kick() {
                self.kick();
            }
        }
        count
    }

    /// What the kernel has counted.
    pub(in crate::load) fn statistics(&self) -> io::Result<Statistics> {
        let [dropped, _rx_invalid, _tx_invalid, ring_full, fill_empty, _tx_empty] =
            option_words(&self.socket, libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(Statistics { dropped, ring_full, fill_empty })
    }
}

impl AsFd for XdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The `length` bytes at `at` of the socket's memory; nothing if they are not inside it, which the kernel never claims.
fn frame(memory: &MmapRaw, at: u64, length: u32) -> &[u8] {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    if start.checked_add(length as usize).is_none_or(|end| end > memory.len()) {
        return &[];
    }
    // SAFETY: inside the mapping, as just checked, which outlives the view. The kernel took the frame out of the fill
    // ring, wrote it and does not touch it again before `receive`, which holds the view no longer, puts it back.
    unsafe { std::slice::from_raw_parts(memory.as_ptr().wrapping_add(start), length as usize) }
}
