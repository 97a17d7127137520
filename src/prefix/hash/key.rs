//! Key material: `ChaCha20` expands one 256-bit key (RFC 8439), SipHash-2-4 hashes the chain's start. Both are short,
//! well studied, and run once at start-up or once a request, so plain code serves.

use super::WORDS;

/// All the key words the hash uses. Aligned so that kernels load whole cache lines.
#[repr(C, align(64))]
pub(super) struct Keys {
    /// NH, first pass.
    pub(super) first: [u32; WORDS],
    /// NH, second pass.
    pub(super) second: [u32; WORDS],
    /// Multiply-shift of the two sums: two factors and an addend.
    pub(super) fold: [u128; 3],
    /// The chain: xored in, multiplied by (odd).
    pub(super) chain: [u64; 2],
    /// SipHash key of the chain's start.
    pub(super) root: [u64; 2],
}

impl Keys {
    /// The key whose first eight bytes are `seed` and whose rest is a constant.
    pub(super) fn from_seed(seed: u64) -> Self {
        let mut key = *b"........emberlane prefix seed v1";
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self::expand(&key)
    }

    /// Takes the words in order from the `ChaCha20` key stream of `key` with a zero nonce.
    pub(super) fn expand(key: &[u8; 32]) -> Self {
        let mut stream = KeyStream::new(key);
        let first = std::array::from_fn(|_| stream.next_u32());
        let second = std::array::from_fn(|_| stream.next_u32());
        let fold = std::array::from_fn(|_| u128::from(stream.next_u64()) << 64 | u128::from(stream.next_u64()));
        let chain = [stream.next_u64(), stream.next_u64() | 1];
        Self { first, second, fold, chain, root: [stream.next_u64(), stream.next_u64()] }
    }
}

/// `ChaCha20` in counter mode from block 0.
struct KeyStream {
    state: [u32; 16],
    block: [u32; 16],
    used: usize,
}

impl KeyStream {
    fn new(key: &[u8; 32]) -> Self {
        let mut state = [0; 16];
        state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
        for (word, bytes) in state[4..12].iter_mut().zip(key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self { state, block: [0; 16], used: 16 }
    }

    fn next_u32(&mut self) -> u32 {
        if self.used == 16 {
            self.block = chacha20_block(&self.state);
            self.state[12] = self.state[12].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }
}

fn chacha20_block(state: &[u32; 16]) -> [u32; 16] {
    fn quarter(x: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
        for (a, b, d, left) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            x[a] = x[a].wrapping_add(x[b]);
            x[d] = (x[d] ^ x[a]).rotate_left(left);
        }
    }
    let mut x = *state;
    for _ in 0..10 {
        for i in 0..4 {
            quarter(&mut x, i, 4 + i, 8 + i, 12 + i);
        }
        for i in 0..4 {
            quarter(&mut x, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4);
        }
    }
    std::array::from_fn(|i| x[i].wrapping_add(state[i]))
}

/// SipHash-2-4 over whole 64-bit words: strings are length-delimited and padded, so no byte tail is needed.
pub(super) struct SipHash {
    v: [u64; 4],
}

impl SipHash {
    pub(super) const fn new([k0, k1]: [u64; 2]) -> Self {
        Self {
            v: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
        }
    }

    /// Takes in one word of message.
    pub(super) const fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    /// Takes in a string: its length, then its bytes padded with zeros to whole words.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut padded = [0; 8];
            padded[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(padded));
        }
    }

    pub(super) fn finish(mut self) -> u64 {
        self.v[2] ^= 0xff;
        for _ in 0..4 {
            self.round();
        }
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }

    const fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.v;
        *v0 = v0.wrapping_add(*v1);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v3);
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.wrapping_add(*v3);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.wrapping_add(*v1);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8439, section 2.3.2.
    #[test]
    fn chacha20_matches_its_test_vector() {
        let key: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let mut stream = KeyStream::new(&key);
        stream.state[12..].copy_from_slice(&[1, 0x0900_0000, 0x4a00_0000, 0]);
        let words: Vec<u32> = (0..16).map(|_| stream.next_u32()).collect();
        assert_eq!(words[..4], [0xe4e7_f110, 0x1559_3bd1, 0x1fdd_0f50, 0xc471_20a3]);
        assert_eq!(words[12..], [0xd19c_12b5, 0xb94e_16de, 0xe883_d0cb, 0x4e3c_50a2]);
        assert_eq!(stream.state[12], 2);
    }

    /// Appendix A of the SipHash paper: key 00..0f, message 00..0e. Its last word holds the tail and the length.
    #[test]
    fn siphash_matches_its_test_vector() {
        let mut sip = SipHash::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        sip.word(0x0706_0504_0302_0100);
        sip.word(0x0f0e_0d0c_0b0a_0908);
        assert_eq!(sip.finish(), 0xa129_ca61_49be_45e5);
    }
}
