//! Keys that sign beacons: shared secrets with numbers, so that a new one can be brought in while the old one still
//! serves.
//!
//! A file of keys is text, one `id:hex` a line:
//!
//! ```text
//! # made by: echo "2:$(openssl rand -hex 32)"
//! 2:8d0f...            the first key signs
//! 1:52c1...            the others are only accepted
//! ```
//!
//! To rotate: add the new key below the old one at every gateway, then give it to the senders, then take the old one
//! away.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// Bytes of a MAC: HMAC-SHA-256, cut to its first 128 bits (RFC 2104, section 5).
pub const MAC_BYTES: usize = 16;
/// Fewest bytes of a secret.
pub const SECRET_BYTES_MIN: usize = 16;
/// Most bytes of a secret: HMAC hashes longer ones down, so they would bring nothing.
pub const SECRET_BYTES_MAX: usize = 64;
/// Most keys in a file.
pub const KEYS_MAX: usize = 64;

/// A shared secret, ready to sign and to verify. Prints its number only.
#[derive(Clone)]
pub struct Key {
    id: u32,
    /// Both pads of the key hashed already: a MAC costs only the blocks of its message and one more.
    ready: Hmac<Sha256>,
}

impl Key {
    /// The key with the number `id` and these secret bytes.
    ///
    /// # Errors
    /// The number is zero, or the secret is not [`SECRET_BYTES_MIN`] to [`SECRET_BYTES_MAX`] bytes long.
    pub fn new(id: u32, secret: &[u8]) -> Result<Self, KeyFault> {
        if id == 0 {
            return Err(KeyFault::Id);
        }
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
            return Err(KeyFault::Size { bytes: secret.len() });
        }
        // HMAC takes a secret of any size; the error is unreachable, and is what it would have to be.
        let ready = Hmac::new_from_slice(secret).map_err(|_any_size| KeyFault::Size { bytes: secret.len() })?;
        Ok(Self { id, ready })
    }

    /// Its number, never zero.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The MAC of `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; MAC_BYTES] {
        let whole: [u8; 32] = self.ready.clone().chain_update(message).finalize().into_bytes().into();
        let mut mac = [0; MAC_BYTES];
        mac.iter_mut().zip(whole).for_each(|(cut, byte)| *cut = byte);
        mac
    }

    /// Whether `mac` is that of `message`. Takes the same time whichever of its bytes is wrong.
    #[must_use]
    pub fn verifies(&self, message: &[u8], mac: &[u8; MAC_BYTES]) -> bool {
        self.ready.clone().chain_update(message).verify_truncated_left(mac).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys of a file. Default: none.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<Key>,
}

impl Keys {
    /// Reads the text of a file of keys.
    ///
    /// # Errors
    /// The first line that is not a key, or that there is none at all. Errors never show a secret.
    pub fn parse(text: &str) -> Result<Self, KeysFault> {
        let mut keys: Vec<Key> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |cause| KeysFault::Line { line: index + 1, cause };
            let key = parse_line(line).map_err(wrong)?;
            if keys.iter().any(|earlier| earlier.id == key.id) {
                return Err(wrong(KeyFault::Twice { id: key.id }));
            }
            if keys.len() == KEYS_MAX {
                return Err(wrong(KeyFault::TooMany));
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(KeysFault::Empty) } else { Ok(Self { keys }) }
    }

    /// The key to sign with: the first of the file.
    #[must_use]
    pub fn signing(&self) -> Option<&Key> {
        self.keys.first()
    }

    /// The key with the number `id`.
    #[inline]
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// Whether there is no key.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl From<Key> for Keys {
    fn from(key: Key) -> Self {
        Self { keys: vec![key] }
    }
}

/// Why a file of keys cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysFault {
    /// One line is wrong.
    #[error("line {line}: {cause}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        cause: KeyFault,
    },
    /// There is no key in it. An error, for without keys beacons would be taken unsigned.
    #[error("there is no key in it; write one as `1:` and the output of `openssl rand -hex 32`")]
    Empty,
}

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// No colon.
    #[error("a key is written `id:hex`, such as `1:` and the output of `openssl rand -hex 32`")]
    NoColon,
    /// Not a number from 1 to 2³² - 1.
    #[error("the number before the colon must be 1 to 4294967295")]
    Id,
    /// Not hexadecimal.
    #[error("what follows the colon must be pairs of hexadecimal digits")]
    Hex,
    /// Too short to be a secret, or too long.
    #[error("the secret has {bytes} bytes; it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}")]
    Size {
        /// How many it has.
        bytes: usize,
    },
    /// The number was used above.
    #[error("key {id} stands above already; each key needs a number of its own")]
    Twice {
        /// The number.
        id: u32,
    },
    /// More than [`KEYS_MAX`] keys.
    #[error("there are more than {KEYS_MAX} keys; take the old ones away")]
    TooMany,
}

/// One line, `id:hex`.
fn parse_line(line: &str) -> Result<Key, KeyFault> {
    let (id, hex) = line.split_once(':').ok_or(KeyFault::NoColon)?;
    let id = id.trim();
    if !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(KeyFault::Id);
    }
    let id = id.parse().map_err(|_not_u32| KeyFault::Id)?;
    let hex = hex.trim().as_bytes();
    let (pairs, odd) = hex.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(KeyFault::Hex);
    }
    let mut secret = Vec::with_capacity(pairs.len());
    for [high, low] in pairs {
        let (high, low) = nibble(*high).zip(nibble(*low)).ok_or(KeyFault::Hex)?;
        secret.push(high << 4 | low);
    }
    Key::new(id, &secret)
}

/// The value of a hexadecimal digit.
const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "000102030405060708090a0b0c0d0e0f";

    fn fault(text: &str) -> String {
        Keys::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_first_key_signs_and_all_verify() {
        let text = format!("# comment\n\n 7:{SECRET} \r\n4294967295 : {}\n", SECRET.to_uppercase().repeat(4));
        let keys = Keys::parse(&text).unwrap();
        assert_eq!(keys.signing().map(Key::id), Some(7));
        assert_eq!(keys.get(u32::MAX).map(Key::id), Some(u32::MAX));
        assert!(keys.get(1).is_none() && keys.get(0).is_none() && !keys.is_empty());
        let (first, second) = (keys.get(7).unwrap(), keys.get(u32::MAX).unwrap());
        let mac = first.sign(b"load");
        assert!(first.verifies(b"load", &mac));
        assert!(!first.verifies(b"loaD", &mac) && !second.verifies(b"load", &mac));
    }

    /// RFC 4231, test case 2, padded to a secret that is long enough; the MAC is Python's
    /// `hmac.new(b"Jefe" * 4, b"what do ya want for nothing?", "sha256").digest()[:16]`.
    #[test]
    fn the_mac_is_hmac_sha_256_cut_to_128_bits() {
        let key = Key::new(1, &b"Jefe".repeat(4)).unwrap();
        let hex: String = key.sign(b"what do ya want for nothing?").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "2ccd85dfc8d18cb5d84fef4b19855469");
    }

    #[test]
    fn errors_name_the_line_and_keep_the_secret() {
        assert_eq!(
            fault("\n# x\n7"),
            "line 3: a key is written `id:hex`, such as `1:` and the output of `openssl rand -hex 32`"
        );
        for id in ["", "0", "-1", "+1", "4294967296", "x"] {
            let expected = "line 1: the number before the colon must be 1 to 4294967295";
            assert_eq!(fault(&format!("{id}:{SECRET}")), expected, "{id:?}");
        }
        assert_eq!(
            fault(&format!("1:{SECRET}0")),
            "line 1: what follows the colon must be pairs of hexadecimal digits"
        );
        assert_eq!(fault("1:0g"), "line 1: what follows the colon must be pairs of hexadecimal digits");
        assert_eq!(fault("1:c0ffee"), "line 1: the secret has 3 bytes; it must have 16 to 64");
        assert_eq!(fault(&format!("1:{}", "00".repeat(65))), "line 1: the secret has 65 bytes; it must have 16 to 64");
        assert_eq!(
            fault(&format!("9:{SECRET}\n9:{SECRET}")),
            "line 2: key 9 stands above already; each key needs a number of its own"
        );
        let many: String = (1..=65).map(|id| format!("{id}:{SECRET}\n")).collect();
        assert_eq!(fault(&many), "line 65: there are more than 64 keys; take the old ones away");
        assert!(fault("# nothing\n").starts_with("there is no key in it"));
        for wrong in ["1:c0ffee", "1:c0ffe", "1c0ffee", "0:c0ffee", "c0ffee:00"] {
            assert!(!fault(wrong).contains("c0ffee"));
        }
    }

    #[test]
    fn a_key_prints_its_number_only() {
        let key = Key::new(3, &[0xab; 16]).unwrap();
        assert_eq!(
            format!("{key:?} {:?}", Keys::from(key.clone())),
            "Key { id: 3, .. } Keys { keys: [Key { id: 3, .. }] }"
        );
    }

    #[test]
    fn any_text_is_an_answer() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let _ = Keys::parse(&String::from_utf8_lossy(bytes));
        });
    }
}
