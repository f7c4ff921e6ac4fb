//! Places in one block of memory for buffers of which not all are needed at the same time.

/// Floats that are needed from one step to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    pub(super) length: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

impl Buffer {
    /// A step reads or writes it.
    pub(super) fn is_used_at(&mut self, time: usize) {
        self.first = self.first.min(time);
        self.last = self.last.max(time);
    }

    fn lives_with(&self, other: &Buffer) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The place of each buffer, and the length of the whole: the shorter that two orders of placing them give. In both the
/// largest come first; in the second, what lives long counts as larger than it is.
pub(super) fn places(buffers: &[Buffer]) -> (Vec<usize>, usize) {
    let end = buffers.iter().map(|buffer| buffer.first).max().unwrap_or(0);
    let weight = |buffer: &Buffer| {
        let time = buffer.last.min(end).saturating_sub(buffer.first) + 1;
        buffer.length as f64 * (time as f64).sqrt().sqrt()
    };
    let largest = in_order(buffers, |buffer| buffer.length as f64);
    let longest = in_order(buffers, weight);
    if longest.1 < largest.1 {
        longest
    } else {
        largest
    }
}

/// Places the heaviest buffers first, each at the lowest place that nobody else needs at the time.
fn in_order(buffers: &[Buffer], weight: impl Fn(&Buffer) -> f64) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by(|&a, &b| weight(&buffers[b]).total_cmp(&weight(&buffers[a])));
    let mut places = vec![0usize; buffers.len()];
    let mut placed: Vec<usize> = Vec::new(); // by place
    let mut length = 0usize;
    for index in order {
        let buffer = &buffers[index];
        let mut place = 0usize;
        for &other in placed
            .iter()
            .filter(|&&other| buffers[other].lives_with(buffer))
        {
            if places[other] >= place.saturating_add(buffer.length) {
                break;
            }
            place = place.max(places[other].saturating_add(buffers[other].length));
        }
        places[index] = place;
        length = length.max(place.saturating_add(buffer.length));
        let before = placed.partition_point(|&other| places[other] <= place);
        placed.insert(before, index);
    }
    (places, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_live_together_lie_apart_and_others_share() {
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let buffers: Vec<Buffer> = (0..200)
            .map(|_| {
                let first = random(100);
                Buffer {
                    length: 16 * (1 + random(50)),
                    first,
                    last: first + random(20),
                }
            })
            .collect();
        let (places, length) = places(&buffers);
        for (i, a) in buffers.iter().enumerate() {
            assert!(places[i] + a.length <= length);
            for (j, b) in buffers.iter().enumerate().take(i) {
                let apart = places[i] + a.length <= places[j] || places[j] + b.length <= places[i];
                assert!(
                    apart || !a.lives_with(b),
                    "{a:?} at {} and {b:?} at {}",
                    places[i],
                    places[j]
                );
            }
        }
        let alive = |step| {
            buffers
                .iter()
                .filter(|b| b.first <= step && step <= b.last)
                .map(|b| b.length)
                .sum::<usize>()
        };
        let least = (0..120).map(alive).max().unwrap();
        assert!(length < 2 * least, "{length} for {least}");
    }
}
