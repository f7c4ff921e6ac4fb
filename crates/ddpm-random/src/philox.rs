//! Philox4x32-10: 64 bits of key and 128 bits of counter to 128 random bits, with no state.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

/// Counters that are worked on side by side; the loops over them become vector instructions.
pub(crate) const LANES: usize = 16;

/// One word of each of [`LANES`] counters or outputs.
pub(crate) type Words = [u32; LANES];

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
/// The golden ratio, 2^32 (√5 - 1)/2.
const WEYL_0: u32 = 0x9E37_79B9;
/// 2^32 (√3 - 1).
const WEYL_1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;

/// The four output words of one counter.
pub(crate) fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    philox_lanes(key, counter.map(|word| [word; 1])).map(|word| word[0])
}

/// The output words of several counters at once, word by word (structure of arrays).
#[inline(always)]
pub(crate) fn philox_lanes<const N: usize>(
    key: [u32; 2],
    counters: [[u32; N]; 4],
) -> [[u32; N]; 4] {
    let [mut word_0, mut word_1, mut word_2, mut word_3] = counters;
    let [mut key_0, mut key_1] = key;
    for _ in 0..ROUNDS {
        for lane in 0..N {
            let product_0 = u64::from(MULTIPLIER_0) * u64::from(word_0[lane]);
            let product_1 = u64::from(MULTIPLIER_1) * u64::from(word_2[lane]);
            word_0[lane] = (product_1 >> 32) as u32 ^ word_1[lane] ^ key_0;
            word_2[lane] = (product_0 >> 32) as u32 ^ word_3[lane] ^ key_1;
            word_1[lane] = product_1 as u32;
            word_3[lane] = product_0 as u32;
        }
        key_0 = key_0.wrapping_add(WEYL_0);
        key_1 = key_1.wrapping_add(WEYL_1);
    }
    [word_0, word_1, word_2, word_3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123 1.14 (tests/kat_vectors, `philox4x32 10`).
    #[test]
    fn the_published_answers() {
        let all = u32::MAX;
        let cases = [
            (
                [0; 2],
                [0; 4],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [all; 2],
                [all; 4],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, expected) in cases {
            assert_eq!(philox(key, counter), expected);
        }
    }

    #[test]
    fn lanes_do_not_mix() {
        let key = [3, 5];
        let counters: [Words; 4] = std::array::from_fn(|word| {
            std::array::from_fn(|lane| (1 + word * 1000 + lane * 7) as u32)
        });
        let outputs = philox_lanes(key, counters);
        for lane in 0..LANES {
            let one = philox(key, counters.map(|word| word[lane]));
            assert_eq!(one, outputs.map(|word| word[lane]));
        }
    }
}
