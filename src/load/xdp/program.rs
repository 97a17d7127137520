//! The XDP program, put together by hand: it sends datagrams for one address and port to the AF_XDP socket of their
//! receive queue, and lets everything else go on to the kernel. Pure: what it makes is bytes, which the tests run in an
//! interpreter of their own; the kernel's verifier has the last word when they are loaded.
//!
//! What it redirects: UDP over IPv4 (without options, unfragmented) or IPv6 (without extension headers), behind at most
//! one VLAN tag. Cards that strip tags in hardware hide them from XDP, so a tag cannot be told by, and is not. A queue
//! without a socket lets its datagrams go on to the kernel too.

use std::net::{IpAddr, SocketAddr};

use super::frame::{ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPES_VLAN, UDP, V4_FIRST, V4_FRAGMENT_MASK, field};

/// One instruction as the kernel reads it: `struct bpf_insn` of `linux/bpf.h`.
pub(super) type Instruction = [u8; 8];

/// Operation codes (`linux/bpf_common.h`, `linux/bpf.h`): class, source (`_R` register, else immediate) and operation.
mod code {
    pub(super) const LOAD_U8: u8 = 0x71;
    pub(super) const LOAD_U16: u8 = 0x69;
    pub(super) const LOAD_U32: u8 = 0x61;
    pub(super) const LOAD_WIDE: u8 = 0x18;
    pub(super) const MOVE: u8 = 0xb7;
    pub(super) const MOVE_R: u8 = 0xbf;
    pub(super) const ADD: u8 = 0x07;
    pub(super) const AND: u8 = 0x57;
    pub(super) const JUMP: u8 = 0x05;
    pub(super) const JUMP_IF_GREATER_R: u8 = 0x2d;
    /// Compares the low 32 bits (class `BPF_JMP32`): an immediate is otherwise sign-extended to 64.
    pub(super) const JUMP_IF_EQUAL_32: u8 = 0x16;
    pub(super) const JUMP_IF_UNEQUAL_32: u8 = 0x56;
    pub(super) const CALL: u8 = 0x85;
    pub(super) const EXIT: u8 = 0x95;
}

/// `BPF_PSEUDO_MAP_FD`: the wide immediate is a descriptor of a map.
const PSEUDO_MAP: u8 = 1;
/// `BPF_FUNC_redirect_map`.
const REDIRECT_MAP: i32 = 51;
/// `XDP_PASS`: go on to the kernel.
pub(super) const XDP_PASS: i32 = 2;
/// Offsets in `struct xdp_md`.
const MD_DATA: i16 = 0;
const MD_DATA_END: i16 = 4;
const MD_RX_QUEUE: i16 = 16;

/// Registers. `R0` returns, `R1` to `R5` are arguments and lost in calls, `R6` and up are kept.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Register {
    Return = 0,
    /// The context at the start, and the first argument of calls.
    First = 1,
    Second = 2,
    Third = 3,
    Scratch = 4,
    Word = 5,
    Context = 6,
    /// Start of the frame; four bytes on behind a VLAN tag, so that all that follows has one offset.
    Frame = 7,
    End = 8,
}

/// Places to jump to.
#[derive(Clone, Copy, PartialEq)]
enum Label {
    Tagged,
    Network,
    V6,
    Redirect,
    Pass,
}

/// An assembler with labels.
#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn emit(&mut self, code: u8, target: Register, source: u8, offset: i16, immediate: i32) {
        // Two bit fields of four bits each, which C lays out by the machine's byte order.
        let (target, source) = (target as u8, source & 15);
        let registers = if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
        let ([o0, o1], [i0, i1, i2, i3]) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
        self.code.push([code, registers, o0, o1, i0, i1, i2, i3]);
    }

    fn load(&mut self, code: u8, target: Register, base: Register, offset: i16) {
        self.emit(code, target, base as u8, offset, 0);
    }

    fn copy(&mut self, target: Register, source: Register) {
        self.emit(code::MOVE_R, target, source as u8, 0, 0);
    }

    fn set(&mut self, target: Register, value: i32) {
        self.emit(code::MOVE, target, 0, 0, value);
    }

    fn add(&mut self, target: Register, value: i32) {
        self.emit(code::ADD, target, 0, 0, value);
    }

    fn map(&mut self, target: Register, descriptor: i32) {
        self.emit(code::LOAD_WIDE, target, PSEUDO_MAP, 0, descriptor);
        self.code.push([0; 8]);
    }

    fn call(&mut self, function: i32) {
        self.emit(code::CALL, Register::Return, 0, 0, function);
    }

    fn exit(&mut self) {
        self.emit(code::EXIT, Register::Return, 0, 0, 0);
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(code::JUMP, Register::Return, 0, 0, 0);
    }

    fn jump_if(&mut self, code: u8, register: Register, value: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(code, register, 0, 0, value);
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    /// The verifier demands this before any byte below `bytes` is read: goes to [`Label::Pass`] when the frame is
    /// shorter.
    fn need(&mut self, bytes: usize) {
        self.copy(Register::Scratch, Register::Frame);
        self.add(Register::Scratch, small(bytes));
        self.jumps.push((self.code.len(), Label::Pass));
        self.emit(code::JUMP_IF_GREATER_R, Register::Scratch, Register::End as u8, 0, 0);
    }

    /// Goes to [`Label::Pass`] unless the frame holds `bytes` at `offset`.
    fn expect<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        let (load, value) = word(bytes);
        self.load(load, Register::Word, Register::Frame, offset_of(offset));
        self.jump_if(code::JUMP_IF_UNEQUAL_32, Register::Word, value, Label::Pass);
    }

    /// The whole program: every jump with its distance, counted from the instruction after it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "some 60 instructions")]
    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.labels.iter().find(|(name, _)| *name == label).map_or(0, |(_, place)| *place);
            debug_assert!(target > at, "jumps go forward, to labels that exist");
            let [low, high] = ((target as i16) - (at as i16) - 1).to_ne_bytes();
            self.code[at][2] = low;
            self.code[at][3] = high;
        }
        self.code
    }
}

/// Bytes of the frame as a load sees them: how to load them, and the number they make.
fn word<const N: usize>(bytes: [u8; N]) -> (u8, i32) {
    match *bytes.as_slice() {
        [a] => (code::LOAD_U8, i32::from(a)),
        [a, b] => (code::LOAD_U16, i32::from(u16::from_ne_bytes([a, b]))),
        _ => (code::LOAD_U32, i32::from_ne_bytes(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0)))),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "offsets in headers, below 100")]
const fn small(bytes: usize) -> i32 {
    bytes as i32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "offsets in headers, below 100")]
const fn offset_of(bytes: usize) -> i16 {
    bytes as i16
}

/// The program that sends what is for `listen` to the sockets in `map`. A wildcard address takes datagrams for any
/// address; `::` those of both families, as the kernel's socket does.
pub(super) fn redirect(listen: SocketAddr, map: i32) -> Vec<Instruction> {
    let mut a = Assembler::default();
    a.copy(Register::Context, Register::First);
    a.load(code::LOAD_U32, Register::Frame, Register::Context, MD_DATA);
    a.load(code::LOAD_U32, Register::End, Register::Context, MD_DATA_END);

    a.need(field::ETHERNET_BYTES);
    a.load(code::LOAD_U16, Register::Word, Register::Frame, offset_of(field::ETHERTYPE));
    for tag in ETHERTYPES_VLAN {
        a.jump_if(code::JUMP_IF_EQUAL_32, Register::Word, word(tag).1, Label::Tagged);
    }
    a.jump(Label::Network);

    a.label(Label::Tagged);
    a.add(Register::Frame, small(field::VLAN_BYTES));
    a.need(field::ETHERNET_BYTES);
    a.load(code::LOAD_U16, Register::Word, Register::Frame, offset_of(field::ETHERTYPE));

    a.label(Label::Network);
    let takes_v4 = listen.is_ipv4() || listen.ip().is_unspecified();
    a.jump_if(code::JUMP_IF_EQUAL_32, Register::Word, word(ETHERTYPE_V6).1, Label::V6);
    if takes_v4 {
        a.jump_if(code::JUMP_IF_UNEQUAL_32, Register::Word, word(ETHERTYPE_V4).1, Label::Pass);
        match_v4(&mut a, listen);
    }
    a.jump(if takes_v4 { Label::Redirect } else { Label::Pass });

    a.label(Label::V6);
    if listen.is_ipv6() {
        match_v6(&mut a, listen);
    } else {
        a.jump(Label::Pass);
    }

    a.label(Label::Redirect);
    a.map(Register::First, map);
    a.load(code::LOAD_U32, Register::Second, Register::Context, MD_RX_QUEUE);
    // The flags' low bits are what to do when the queue has no socket.
    a.set(Register::Third, XDP_PASS);
    a.call(REDIRECT_MAP);
    a.exit();

    a.label(Label::Pass);
    a.set(Register::Return, XDP_PASS);
    a.exit();
    a.finish()
}

fn match_v4(a: &mut Assembler, listen: SocketAddr) {
    let ip = field::ETHERNET_BYTES;
    let udp = ip + field::V4_BYTES;
    a.need(udp + field::UDP_BYTES);
    a.expect(ip, [V4_FIRST]);
    a.load(code::LOAD_U16, Register::Word, Register::Frame, offset_of(ip + field::V4_FRAGMENT));
    a.emit(code::AND, Register::Word, 0, 0, word(V4_FRAGMENT_MASK).1);
    a.jump_if(code::JUMP_IF_UNEQUAL_32, Register::Word, 0, Label::Pass);
    a.expect(ip + field::V4_PROTOCOL, [UDP]);
    a.expect(udp + field::UDP_TARGET, listen.port().to_be_bytes());
    match listen.ip() {
        IpAddr::V4(address) if !address.is_unspecified() => a.expect(ip + field::V4_TARGET, address.octets()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
}

fn match_v6(a: &mut Assembler, listen: SocketAddr) {
    let ip = field::ETHERNET_BYTES;
    let udp = ip + field::V6_BYTES;
    a.need(udp + field::UDP_BYTES);
    a.expect(ip + field::V6_NEXT, [UDP]);
    a.expect(udp + field::UDP_TARGET, listen.port().to_be_bytes());
    match listen.ip() {
        IpAddr::V6(address) if !address.is_unspecified() => {
            let octets = address.octets();
            for (at, part) in octets.as_chunks::<4>().0.iter().enumerate() {
                a.expect(ip + field::V6_TARGET + 4 * at, *part);
            }
        }
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{parse, tests::frame};
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Verdict {
        Pass,
        Redirect { map: i32, queue: u64, otherwise: u64 },
    }

    /// Runs a program over a frame as the kernel would, and fails where its verifier would: on reads outside the frame.
    /// Addresses: the context at 1,000, the frame at 10,000.
    fn run(program: &[Instruction], frame: &[u8], queue: u32) -> Verdict {
        const MD: u64 = 1_000;
        const DATA: u64 = 10_000;
        let mut registers = [0_u64; 11];
        registers[1] = MD;
        let mut at = 0;
        for _ in 0..program.len() {
            let [operation, pair, o0, o1, i0, i1, i2, i3] = program[at];
            let (target, source) = (usize::from(pair & 15), usize::from(pair >> 4));
            let (offset, immediate) = (i16::from_ne_bytes([o0, o1]), i32::from_ne_bytes([i0, i1, i2, i3]));
            let (signed, low) = (i64::from(immediate).cast_unsigned(), registers[target] & 0xffff_ffff);
            let same = low == u64::from(immediate.cast_unsigned());
            at += 1;
            let jumps = match operation {
                code::JUMP => true,
                code::JUMP_IF_GREATER_R => registers[target] > registers[source],
                code::JUMP_IF_EQUAL_32 => same,
                code::JUMP_IF_UNEQUAL_32 => !same,
                _ => false,
            };
            if jumps {
                at = at.checked_add_signed(isize::from(offset)).unwrap();
                continue;
            }
            match operation {
                code::LOAD_U32 if registers[source] == MD => {
                    registers[target] = match offset {
                        MD_DATA => DATA,
                        MD_DATA_END => DATA + frame.len() as u64,
                        MD_RX_QUEUE => queue.into(),
                        other => panic!("reads {other} of the context"),
                    };
                }
                code::LOAD_U8 | code::LOAD_U16 | code::LOAD_U32 => {
                    let place = usize::try_from(registers[source] - DATA).unwrap().checked_add_signed(offset.into());
                    let rest = &frame[place.unwrap()..];
                    registers[target] = match operation {
                        code::LOAD_U8 => rest[0].into(),
                        code::LOAD_U16 => u16::from_ne_bytes(*rest.first_chunk().unwrap()).into(),
                        _ => u32::from_ne_bytes(*rest.first_chunk().unwrap()).into(),
                    };
                }
                code::LOAD_WIDE => {
                    assert_eq!(source, 1);
                    registers[target] = signed;
                    at += 1;
                }
                code::MOVE => registers[target] = signed,
                code::MOVE_R => registers[target] = registers[source],
                code::ADD => registers[target] += signed,
                code::AND => registers[target] &= signed,
                code::CALL => {
                    assert_eq!(immediate, REDIRECT_MAP);
                    let map = i32::try_from(registers[1]).unwrap();
                    return Verdict::Redirect { map, queue: registers[2], otherwise: registers[3] };
                }
                code::EXIT => {
                    assert_eq!(registers[0], u64::from(XDP_PASS.cast_unsigned()));
                    return Verdict::Pass;
                }
                code::JUMP_IF_GREATER_R | code::JUMP_IF_EQUAL_32 | code::JUMP_IF_UNEQUAL_32 => {}
                other => panic!("operation {other:#x}"),
            }
        }
        panic!("runs off its end");
    }

    fn takes(listen: &str, frame: &[u8]) -> bool {
        run(&redirect(listen.parse().unwrap(), 9), frame, 3) != Verdict::Pass
    }

    fn to(target: &str, vlan: bool) -> Vec<u8> {
        let target: SocketAddr = target.parse().unwrap();
        let from: IpAddr = if target.is_ipv4() { [10, 0, 0, 9].into() } else { "fd00::9".parse().unwrap() };
        frame(from, target, vlan, b"a beacon")
    }

    #[test]
    fn takes_what_is_for_its_address_and_port_and_nothing_else() {
        let targets = [
            "10.0.0.2:7946",
            "10.0.0.3:7946",
            "10.0.0.2:7947",
            "239.1.2.3:7946",
            "[fd00::2]:7946",
            "[fd00::3]:7946",
            "[fd00::2]:7947",
        ];
        let expected = [
            ("10.0.0.2:7946", [true, false, false, false, false, false, false]),
            ("0.0.0.0:7946", [true, true, false, true, false, false, false]),
            ("239.1.2.3:7946", [false, false, false, true, false, false, false]),
            ("[fd00::2]:7946", [false, false, false, false, true, false, false]),
            ("[::]:7946", [true, true, false, true, true, true, false]),
        ];
        for (listen, answers) in expected {
            for (target, answer) in targets.into_iter().zip(answers) {
                for vlan in [false, true] {
                    assert_eq!(takes(listen, &to(target, vlan)), answer, "{target} at {listen}, VLAN {vlan}");
                }
            }
        }
    }

    #[test]
    fn sends_to_the_queue_it_came_by_or_else_to_the_kernel() {
        let verdict = run(&redirect("0.0.0.0:7946".parse().unwrap(), 9), &to("10.0.0.2:7946", false), 3);
        assert_eq!(verdict, Verdict::Redirect { map: 9, queue: 3, otherwise: 2 });
    }

    #[test]
    fn cut_frames_go_to_the_kernel_and_are_not_read_past_their_end() {
        for target in ["10.0.0.2:7946", "[fd00::2]:7946"] {
            for vlan in [false, true] {
                let whole = to(target, vlan);
                let headers = whole.len() - b"a beacon".len();
                for length in 0..whole.len() {
                    assert_eq!(takes("[::]:7946", &whole[..length]), length >= headers, "{length} bytes");
                }
            }
        }
    }

    #[test]
    fn fragments_options_and_other_protocols_go_to_the_kernel() {
        for (at, byte) in [(12, 9), (14, 0x46), (20, 0x20), (21, 8), (20, 0x1f), (23, 6)] {
            let mut frame = to("10.0.0.2:7946", false);
            frame[at] = byte;
            assert!(!takes("0.0.0.0:7946", &frame), "byte {at} is {byte}");
        }
        let mut frame = to("[fd00::2]:7946", false);
        frame[20] = 44;
        assert!(!takes("[::]:7946", &frame));
    }

    /// Any damage to a good frame: the program takes all that the parser reads as ours. (It takes more: it knows nothing
    /// of checksums and lengths.)
    #[test]
    fn takes_whatever_the_parser_would_read() {
        let listen: SocketAddr = "10.0.0.2:7946".parse().unwrap();
        let program = redirect(listen, 9);
        bolero::check!().with_type::<(Vec<(u8, u8)>, bool)>().for_each(|(damage, vlan)| {
            let mut frame = to("10.0.0.2:7946", *vlan);
            let length = frame.len();
            for (at, byte) in damage.iter().take(3) {
                frame[usize::from(*at) % length] = *byte;
            }
            let is_taken = run(&program, &frame, 0) != Verdict::Pass;
            let is_ours = parse(&frame).is_ok_and(|read| read.to == listen);
            assert!(is_taken || !is_ours);
        });
    }
}
