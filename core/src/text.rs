//! Short texts as an input, without a list of words.
//!
//! A word is a run of letters and digits. ASCII capitals count as small letters, apostrophes are left out, and
//! all bytes of UTF-8 beyond ASCII count as letters. Words of one byte are skipped. The first five
//! bytes of a word, which drops most endings, are hashed by 32-bit FNV-1a.
//!
//! The input is the numbers of the first words of a text: as many bits of a mixed hash as the pool's words have. Number 0
//! stands for no word. What a word means is the embedding of each model, which stays the server's: see [`crate::gate::embed`].
//! Two words may have one number, and then mean the same.
//!
//! Time is meant to depend on the lengths of the text and of the input only: there is no branch on the text
//! here. No firmware uses this yet, so its machine code has not been scanned for what a compiler put in.

use crate::spec::MAX_WORD_BITS;

/// Bytes of a word that count.
const LETTERS: i32 = 5;
/// Bytes of the shortest word that is not skipped.
const SHORTEST: i32 = 2;
const OFFSET: u32 = 0x811C_9DC5;
const PRIME: u32 = 0x0100_0193;

/// Writes the first words of `text`, UTF-8, as numbers below `2^bits` (1 to 14 bits), and zeros behind them.
///
/// ```
/// # use secure_router_core::text::input;
/// let (mut one, mut other) = ([0; 32], [0; 32]);
/// input(b"Don't disappoint!", 14, &mut one);
/// input(b"dont -- a disappointment", 14, &mut other);
/// assert_eq!(one, other);
/// ```
pub fn input(text: &[u8], bits: u8, out: &mut [i16]) {
    out.fill(0);
    let mut word = 0u32;
    words(text, |hash, ends| {
        let number = mixed(hash) >> (32 - u32::from(bits.clamp(1, MAX_WORD_BITS)));
        let number = select(is_zero(number), 1, number);
        for (place, slot) in (0u32..).zip(&mut *out) {
            let wanted = ends & is_zero(place ^ word);
            *slot = select(wanted, number, *slot as u32) as i16;
        }
        word += (ends & 1).cast_unsigned();
    });
}

/// Shows `visit`, once per byte and once more, the hash of the word so far and a mask: all ones where a word has
/// just ended, or else none. A branch on the mask would tell of the text.
pub fn words(text: &[u8], mut visit: impl FnMut(u32, i32)) {
    let (mut hash, mut length) = (OFFSET, 0);
    for &byte in text.iter().chain(b" ") {
        let byte = i32::from(byte);
        let within = |low: i32, high: i32| !((byte - low) | (high - byte)) >> 31;
        let capital = within(0x41, 0x5A);
        let letter = capital | within(0x61, 0x7A) | within(0x30, 0x39) | within(0x80, 0xFF);
        let apart = !letter & !within(0x27, 0x27);
        visit(hash, apart & ((SHORTEST - 1 - length) >> 31));

        let counts = letter & ((length - LETTERS) >> 31);
        let next = (hash ^ (byte | (capital & 0x20)).cast_unsigned()).wrapping_mul(PRIME);
        hash = select(apart, OFFSET, select(counts, next, hash));
        length = (length - counts) & !apart;
    }
}

const fn is_zero(value: u32) -> i32 {
    !((value.cast_signed() | value.wrapping_neg().cast_signed()) >> 31)
}

const fn select(mask: i32, then: u32, otherwise: u32) -> u32 {
    let mask = mask.cast_unsigned();
    (then & mask) | (otherwise & !mask)
}

/// Spreads a hash over all bits.
const fn mixed(mut hash: u32) -> u32 {
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x7FEB_352D);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x846C_A68B);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The words' hashes, with all the branches that the kernel must not have.
    fn plainly(text: &[u8]) -> Vec<u32> {
        let letters: Vec<u8> = text.iter().copied().filter(|b| *b != b'\'').collect();
        letters
            .split(|b| b.is_ascii() && !b.is_ascii_alphanumeric())
            .filter(|word| word.len() >= 2)
            .map(|word| {
                let kept = word.iter().take(5).map(u8::to_ascii_lowercase);
                kept.fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
            })
            .collect()
    }

    fn found(text: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        words(text, |hash, ends| {
            assert!(ends == 0 || ends == -1);
            if ends != 0 {
                found.push(hash);
            }
        });
        found
    }

    proptest! {
        #[test]
        fn words_are_those_of_a_plain_reading(text in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..80),
            "[a-zA-Z0-9' .,é]{0,80}".prop_map(String::into_bytes),
        ]) {
            prop_assert_eq!(found(&text), plainly(&text));
        }

        #[test]
        fn an_input_is_its_first_words(text in "[a-f]{1,7}( [a-f]{1,7}){0,40}", room in 0usize..50, bits in 1u8..=14) {
            let mut out = vec![7; room];
            input(text.as_bytes(), bits, &mut out);
            let number = |hash| (mixed(hash) >> (32 - bits)).max(1) as i16;
            let mut numbers: Vec<i16> = plainly(text.as_bytes()).into_iter().map(number).collect();
            numbers.resize(room, 0);
            prop_assert_eq!(out, numbers);
        }
    }

    #[test]
    fn a_hash_is_fnv_1a() {
        // From the authors' test vectors.
        assert_eq!(found(b"Foob 'FOOBA' fo'obar x"), [0x3F50_76EF, 0x39AA_A18A, 0x39AA_A18A]);
    }

    #[test]
    fn numbers_are_spread_over_the_vocabulary() {
        let number = |word: &str| {
            let mut out = [0];
            input(word.as_bytes(), 12, &mut out);
            out[0]
        };
        let mut numbers: Vec<i16> = (0..4096).map(|i| number(&format!("w{i}"))).collect();
        numbers.sort_unstable();
        assert!(numbers[0] > 0 && numbers[4095] < 4096);
        numbers.dedup();
        // Of as many draws as numbers a fraction of 1 - 1/e is expected, 2,589.
        assert!((2_480..2_700).contains(&numbers.len()), "{}", numbers.len());
    }
}
