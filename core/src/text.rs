//! Short texts as an input, without a list of words.
//!
//! A word is a run of letters and digits. ASCII capitals count as small letters, apostrophes are left out, and
//! all bytes of UTF-8 beyond ASCII count as letters. Words of one byte are skipped. The first five
//! bytes of a word, which drops most endings, are hashed by 32-bit FNV-1a.
//!
//! The input is a matrix of [`TOKENS`] rows. Word `n` adds its code to row `n mod TOKENS`: an eighth of the
//! columns, chosen by the hash, get 1. Codes are public and carry no meaning; what a word means is the
//! embedding, which is the matrix of a model's first linear gate and stays the server's.
//!
//! Time is meant to depend on the lengths of the text and of the input only: there is no branch on the text
//! here. No firmware uses this yet, so its machine code has not been scanned for what a compiler put in.

/// Rows of an input made of text.
pub const TOKENS: usize = 16;
/// Bytes of a word that count.
const LETTERS: i32 = 5;
/// Largest value of an input: what a signed byte holds.
pub const MOST: i16 = i8::MAX as i16;

/// Bytes of the shortest word that is not skipped.
const SHORTEST: i32 = 2;
/// A code has a 1 where so many bits of a hash leave three zeros.
const CODE_SHIFT: u32 = 29;
const OFFSET: u32 = 0x811C_9DC5;
const PRIME: u32 = 0x0100_0193;

/// Writes the words of `text`, UTF-8, as an input of whole numbers from 0 to [`MOST`]. Values beyond a multiple
/// of [`TOKENS`] are zero.
///
/// ```
/// # use secure_router_core::text::{TOKENS, input};
/// let (mut one, mut other) = ([0; 64 * TOKENS], [0; 64 * TOKENS]);
/// input(b"Don't disappoint!", &mut one);
/// input(b"dont -- a disappointment", &mut other);
/// assert_eq!(one, other);
/// ```
pub fn input(text: &[u8], out: &mut [i16]) {
    out.fill(0);
    let columns = out.len() / TOKENS;
    if columns == 0 {
        return;
    }
    let mut token = 0u32;
    words(text, |hash, ends| {
        for (row, values) in (0u32..).zip(out.chunks_exact_mut(columns).take(TOKENS)) {
            let wanted = ends & is_zero(row ^ token);
            for (column, value) in (0u32..).zip(values) {
                let marked = is_zero(mixed(hash ^ column.wrapping_mul(PRIME)) >> CODE_SHIFT);
                let room = (*value - MOST) >> 15;
                *value += (wanted & marked) as i16 & room & 1;
            }
        }
        token = (token + (ends & 1).cast_unsigned()) % TOKENS as u32;
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
        fn an_input_is_the_sum_of_its_words(text in "[a-f]{1,7}( [a-f]{1,7}){0,40}", columns in 0usize..70, rest in 0usize..16) {
            let mut out = vec![7; TOKENS * columns + rest];
            input(text.as_bytes(), &mut out);
            let mut sum = vec![0; out.len()];
            for (nth, hash) in plainly(text.as_bytes()).into_iter().enumerate() {
                for column in (0..columns).filter(|c| mixed(hash ^ (*c as u32).wrapping_mul(PRIME)) < 1 << CODE_SHIFT) {
                    sum[nth % TOKENS * columns + column] += 1;
                }
            }
            prop_assert_eq!(out, sum);
        }
    }

    #[test]
    fn a_hash_is_fnv_1a() {
        // From the authors' test vectors.
        assert_eq!(found(b"Foob 'FOOBA' fo'obar x"), [0x3F50_76EF, 0x39AA_A18A, 0x39AA_A18A]);
    }

    #[test]
    fn a_code_is_an_eighth_of_the_columns_and_another_for_each_word() {
        let code = |word: &str| {
            let mut out = [0; 64 * TOKENS];
            input(word.as_bytes(), &mut out);
            out[..64].to_vec()
        };
        let words: Vec<String> = (0..2000).map(|i| format!("w{i}")).collect();
        let mut codes: Vec<Vec<i16>> = words.iter().map(|word| code(word)).collect();
        let ones: i32 = codes.iter().flatten().map(|v| i32::from(*v)).sum();
        assert!((15_500..16_500).contains(&ones), "{ones}");
        codes.sort();
        codes.dedup();
        assert!(codes.len() > 1990, "{}", codes.len());
    }

    #[test]
    fn a_value_does_not_leave_its_range() {
        let mut out = [0; 64 * TOKENS];
        input("same ".repeat(10_000).as_bytes(), &mut out);
        assert!(out.iter().all(|v| [0, MOST].contains(v)) && out.contains(&MOST));
    }
}
