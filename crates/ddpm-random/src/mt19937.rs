//! MT19937: the Mersenne Twister, 32 bits a word, as PyTorch's CPU generator runs it.
//!
//! Matsumoto and Nishimura, "Mersenne Twister: a 623-dimensionally equidistributed uniform
//! pseudo-random number generator", ACM TOMACS 8(1), 1998; seeded as in their version of 2002.

/// Words of state.
const WORDS: usize = 624;
/// How far ahead of a word its partner stands.
const AHEAD: usize = 397;

/// The generator: its state, and which word of it comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mt19937 {
    state: [u32; WORDS],
    next: usize,
}

impl Mt19937 {
    pub(crate) fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            state[i] = (before ^ (before >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Mt19937 { state, next: WORDS }
    }

    /// The next 32 bits.
    pub(crate) fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C_5680;
        word ^= (word << 15) & 0xEFC6_0000;
        word ^ (word >> 18)
    }

    /// The next 64 bits, upper word first.
    pub(crate) fn long(&mut self) -> u64 {
        let upper = u64::from(self.word());
        upper << 32 | u64::from(self.word())
    }

    /// The next 624 words of state from the last.
    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined =
                (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7FFF_FFFF);
            let odd = (joined & 1).wrapping_neg() & 0x9908_B0DF;
            self.state[i] = self.state[(i + AHEAD) % WORDS] ^ (joined >> 1) ^ odd;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard asks that the 10,000th word after the default seed is this one ([rand.predef]).
    #[test]
    fn the_ten_thousandth_word() {
        let mut twister = Mt19937::new(5489);
        let last = (0..10_000).map(|_| twister.word()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
