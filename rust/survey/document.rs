//! Documents, how they are named, and how they are cut into units.

use sha2::{Digest, Sha256};

/// The name of a document: the first 16 bytes of the SHA-256 of its token ids, each as a little-endian u32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentHash(pub [u8; 16]);

impl DocumentHash {
    /// The name of a document of these tokens.
    pub fn of(ids: &[u32]) -> Self {
        let mut hasher = Sha256::new();
        for id in ids {
            hasher.update(id.to_le_bytes());
        }
        Self::first_half(&hasher.finalize())
    }

    fn first_half(digest: &[u8]) -> Self {
        let mut out = [0; 16];
        out.copy_from_slice(&digest[..16]);
        Self(out)
    }

    /// The hash as lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// The hash that [`Self::hex`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut out = [0; 16];
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(Self(out))
    }

    /// Adds modulo 2¹²⁸: a name of a set of documents that does not depend on their order.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(u128::from_le_bytes(self.0).wrapping_add(u128::from_le_bytes(other.0)).to_le_bytes())
    }

    /// Appends to a chain: a name of a sequence of documents that does depend on their order.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        Self::first_half(&Sha256::new().chain_update(self.0).chain_update(next.0).finalize())
    }

    /// Whether one of the document's units is among the one in `every` that histograms count.
    pub fn sampled(self, unit: u32, every: u32) -> bool {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(low).wrapping_add(u64::from(unit)).is_multiple_of(u64::from(every.max(1)))
    }
}

/// A document, as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Its tokens, at least one.
    pub ids: Vec<u32>,
    /// How many of its first tokens the tokenizer put there itself (its BOS): counted apart.
    pub n_bos: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_little_endian_words() {
        // python: hashlib.sha256(numpy.array([1, 2, 70000], "<u4").tobytes()).hexdigest()[:32]
        assert_eq!(DocumentHash::of(&[1, 2, 70000]).hex(), EXPECTED);
        assert_eq!(DocumentHash::from_hex(EXPECTED), Some(DocumentHash::of(&[1, 2, 70000])));
    }

    const EXPECTED: &str = "313a9de55e88265f756e61a8793c4519";

    #[test]
    fn malformed_names_are_refused() {
        for text in ["", "zz", &"0".repeat(31), &"G".repeat(32), &"é".repeat(16)] {
            assert_eq!(DocumentHash::from_hex(text), None, "{text}");
        }
    }

    #[test]
    fn one_unit_in_eight_is_sampled() {
        let hash = DocumentHash::of(&[5]);
        assert_eq!((0..64).filter(|&unit| hash.sampled(unit, 8)).count(), 8);
        let first = (0..4096_u32).filter(|&i| DocumentHash::of(&[i]).sampled(0, 8)).count();
        assert!((400..630).contains(&first), "{first}");
        assert!(hash.sampled(3, 1));
    }
}
