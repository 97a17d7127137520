//! The kernel's interface for XDP: bpf(2) and AF_XDP sockets, each call behind a function that is safe to use. What is
//! not here or in `ring` and `socket` is safe code.
#![expect(unsafe_code, reason = "bpf(2), and options and addresses of AF_XDP sockets")]

use socket2::{Domain, Socket, Type};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::super::udp::{check, size};
use super::program::Instruction;

// Commands of bpf(2), `enum bpf_cmd` of `linux/bpf.h`.
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_LINK_CREATE: i32 = 28;

const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// The attach type of links, `enum bpf_attach_type`.
const BPF_XDP: u32 = 37;

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`.
pub(super) const FLAG_SKB: u32 = 2;
pub(super) const FLAG_NATIVE: u32 = 4;

/// Calls bpf(2) with one of the members of `union bpf_attr`. The kernel takes what is beyond the given length as zero.
///
/// # Safety
/// Every address in `attr` must be valid for what `command` does with it.
unsafe fn bpf<A>(command: i32, attr: &mut A) -> io::Result<i32> {
    let pointer = std::ptr::from_mut(attr);
    // SAFETY: `pointer` is to `size` bytes that are ours alone; what `attr` refers to, the caller vouches for.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size::<A>()) };
    check(i32::try_from(answer).unwrap_or(-1))
}

/// As [`bpf`], for commands that make a descriptor.
///
/// # Safety
/// As [`bpf`]; and `command` must answer with a new descriptor.
unsafe fn bpf_fd<A>(command: i32, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: `fd` is new, open, and nobody else's: the command makes one, says the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a map from receive queues, numbered below `queues`, to AF_XDP sockets.
pub(super) fn socket_map(queues: u32) -> io::Result<OwnedFd> {
    /// `struct { /* anonymous struct used by BPF_MAP_CREATE command */ }`, its beginning.
    #[repr(C)]
    struct MapCreate {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let mut attr = MapCreate { map_type: BPF_MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: queues };
    // SAFETY: no addresses in it; the command makes a descriptor.
    unsafe { bpf_fd(BPF_MAP_CREATE, &mut attr) }
}

/// Puts `socket` into `map` for `queue`.
pub(super) fn set_socket(map: BorrowedFd<'_>, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    /// `struct { /* anonymous struct used by BPF_MAP_*_ELEM commands */ }`.
    #[repr(C)]
    struct MapUpdate {
        map: u32,
        _padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let value = socket.as_raw_fd().cast_unsigned();
    let mut attr = MapUpdate {
        map: map.as_raw_fd().cast_unsigned(),
        _padding: 0,
        key: address(std::ptr::from_ref(&queue)),
        value: address(std::ptr::from_ref(&value)),
        flags: 0,
    };
    // SAFETY: key and value point to four bytes each, as `socket_map` sized them, which live through the call and are
    // only read.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }?;
    Ok(())
}

/// Has the kernel verify and take an XDP program. `log` gets what the verifier says, ending at the first zero byte.
pub(super) fn load(program: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
    /// `struct { /* anonymous struct used by BPF_PROG_LOAD command */ }`, its beginning.
    #[repr(C)]
    struct ProgramLoad {
        program_type: u32,
        instructions_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    // No helper the program calls asks for the GPL.
    let license = c"Apache-2.0";
    let mut attr = ProgramLoad {
        program_type: BPF_PROG_TYPE_XDP,
        instructions_count: u32::try_from(program.len()).unwrap_or(0),
        instructions: address(program.as_ptr()),
        license: address(license.as_ptr()),
        log_level: 1,
        log_size: u32::try_from(log.len()).unwrap_or(0),
        log: address(log.as_mut_ptr()),
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the instructions are as many as given and the licence ends with a zero, both only read; the log is ours to
    // be written, of the size given; the command makes a descriptor.
    unsafe { bpf_fd(BPF_PROG_LOAD, &mut attr) }
}

/// Attaches `program` to the interface with index `interface`, until the link is closed; the end of the process closes
/// it.
pub(super) fn attach(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    /// `struct { /* struct used by BPF_LINK_CREATE command */ }`, its beginning.
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        target_interface: u32,
        attach_type: u32,
        flags: u32,
    }
    let program = program.as_raw_fd().cast_unsigned();
    let mut attr = LinkCreate { program, target_interface: interface, attach_type: BPF_XDP, flags };
    // SAFETY: no addresses in it; the command makes a descriptor.
    unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) }
}

/// The index of the interface that `link` is attached to; 0 once it is not any more.
pub(super) fn attached_to(link: BorrowedFd<'_>) -> io::Result<u32> {
    /// `struct bpf_link_info`, with the union's member for XDP and room for what newer kernels add.
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        program_id: u32,
        _padding: u32,
        interface: u32,
        _rest: [u32; 27],
    }
    /// `struct { /* anonymous struct used by BPF_OBJ_GET_INFO_BY_FD */ }`.
    #[repr(C)]
    struct GetInfo {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let pointer = std::ptr::from_mut(&mut info);
    let mut attr = GetInfo { fd: link.as_raw_fd().cast_unsigned(), length: size::<LinkInfo>(), info: address(pointer) };
    // SAFETY: `info` is ours to be written, of the length given, and made of integers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info.interface)
}

/// Opens an AF_XDP socket, not yet bound.
pub(super) fn socket() -> io::Result<Socket> {
    Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None)
}

/// Registers memory as `socket`'s frames of `frame_bytes` each.
///
/// # Safety
/// The `bytes` bytes at `start` must be a page-aligned mapping; they must stay mapped while `socket` or one of its rings
/// is, and must not be viewed as Rust memory but frame by frame, while that frame is not the kernel's.
pub(super) unsafe fn register(socket: &Socket, start: *mut u8, bytes: usize, frame_bytes: u32) -> io::Result<()> {
    let registration = libc::xdp_umem_reg {
        addr: address(start),
        len: bytes as u64,
        chunk_size: frame_bytes,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    let pointer = std::ptr::from_ref(&registration).cast();
    let length = size::<libc::xdp_umem_reg>();
    // SAFETY: `registration` is read during the call; the memory it names is as the kernel needs it, says the caller.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_UMEM_REG, pointer, length) };
    check(answer)?;
    Ok(())
}

/// Binds `socket` to a receive queue.
pub(super) fn bind(socket: &Socket, interface: u32, queue: u32, flags: u16) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).unwrap_or(0),
        sxdp_flags: flags,
        sxdp_ifindex: interface,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let pointer = std::ptr::from_ref(&address).cast();
    // SAFETY: `pointer` is to an address of the length given, only read.
    check(unsafe { libc::bind(socket.as_raw_fd(), pointer, size::<libc::sockaddr_xdp>()) })?;
    Ok(())
}

/// Lets the driver work for `socket`: it takes up new frames, and delivers what waits. Cheap when there is nothing to do.
pub(super) fn kick(socket: &Socket) {
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
    // SAFETY: nothing is written: the buffer has no length and no address is asked for.
    let _ = unsafe { libc::recvfrom(fd, std::ptr::null_mut(), 0, flags, std::ptr::null_mut(), std::ptr::null_mut()) };
}

/// An address as bpf(2) and AF_XDP take it.
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
