//! Buffers that are filled again once what was copied from them has arrived.

use std::collections::VecDeque;

use candle_core::Result;

/// How copies are made.
pub(super) trait Copies {
    type Buffer;
    /// A moment that is to come: a copy has arrived.
    type Arrival;

    /// A buffer of so many bytes at least.
    fn buffer(&self, bytes: usize) -> Result<Self::Buffer>;
    fn bytes(&self, buffer: &Self::Buffer) -> usize;
    fn has_arrived(&self, arrival: &Self::Arrival) -> Result<bool>;
    fn wait(&self, arrival: &Self::Arrival) -> Result<()>;
}

/// A few buffers. Copies arrive in the order in which they were made.
pub(super) struct Ring<C: Copies> {
    most: usize,
    free: Vec<C::Buffer>,
    under_way: VecDeque<(C::Buffer, C::Arrival)>,
}

impl<C: Copies> Ring<C> {
    /// With so many buffers at most, and one at least.
    pub(super) fn new(most: usize) -> Self {
        Ring {
            most: most.max(1),
            free: Vec::new(),
            under_way: VecDeque::new(),
        }
    }

    /// A buffer of so many bytes at least, that nothing is read from any more. It is nobody's until it is given back.
    pub(super) fn take(&mut self, copies: &C, bytes: usize) -> Result<C::Buffer> {
        while let Some((_, arrival)) = self.under_way.front()
            && copies.has_arrived(arrival)?
        {
            self.free
                .extend(self.under_way.pop_front().map(|(buffer, _)| buffer));
        }
        self.free.sort_by_key(|buffer| copies.bytes(buffer));
        let enough = |buffer: &C::Buffer| copies.bytes(buffer) >= bytes;
        if let Some(place) = self.free.iter().position(enough) {
            return Ok(self.free.remove(place));
        }
        if self.free.len() + self.under_way.len() >= self.most {
            if !self.free.is_empty() {
                self.free.remove(0);
            } else if let Some((buffer, arrival)) = self.under_way.pop_front() {
                copies.wait(&arrival)?;
                if enough(&buffer) {
                    return Ok(buffer);
                }
            }
        }
        copies.buffer(bytes)
    }

    /// A buffer that something is copied from until the arrival.
    pub(super) fn give(&mut self, buffer: C::Buffer, arrival: C::Arrival) {
        self.under_way.push_back((buffer, arrival));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Copies that arrive when they are told to, and a count of all that is done.
    #[derive(Default)]
    struct Fake {
        made: RefCell<Vec<usize>>,
        arrived: Cell<usize>,
        waits: Cell<usize>,
    }

    /// Which buffer it is, and its bytes.
    #[derive(Debug, PartialEq)]
    struct Buffer(usize, usize);

    impl Copies for Fake {
        type Buffer = Buffer;
        type Arrival = usize;

        fn buffer(&self, bytes: usize) -> Result<Buffer> {
            self.made.borrow_mut().push(bytes);
            Ok(Buffer(self.made.borrow().len() - 1, bytes))
        }

        fn bytes(&self, buffer: &Buffer) -> usize {
            buffer.1
        }

        fn has_arrived(&self, copy: &usize) -> Result<bool> {
            Ok(*copy < self.arrived.get())
        }

        fn wait(&self, copy: &usize) -> Result<()> {
            self.waits.set(self.waits.get() + 1);
            self.arrived.set(self.arrived.get().max(copy + 1));
            Ok(())
        }
    }

    #[test]
    fn a_buffer_is_used_again_when_its_copy_has_arrived() {
        let fake = Fake::default();
        let mut ring = Ring::new(3);
        let mut taken = Vec::new();
        for copy in 0..3 {
            let buffer = ring.take(&fake, 100).unwrap();
            taken.push(buffer.0);
            ring.give(buffer, copy);
        }
        assert_eq!(
            (taken.as_slice(), fake.waits.get()),
            ([0, 1, 2].as_slice(), 0)
        );
        // None has arrived: the oldest is waited for.
        let buffer = ring.take(&fake, 100).unwrap();
        assert_eq!((&buffer, fake.waits.get()), (&Buffer(0, 100), 1));
        ring.give(buffer, 3);
        // Two have: nothing is waited for.
        fake.arrived.set(3);
        for expected in [1, 2] {
            let buffer = ring.take(&fake, 50).unwrap();
            assert_eq!(buffer, Buffer(expected, 100));
        }
        assert_eq!((fake.waits.get(), fake.made.borrow().len()), (1, 3));
    }

    #[test]
    fn the_smallest_that_is_enough_is_taken_and_others_make_room() {
        let fake = Fake::default();
        let mut ring = Ring::new(2);
        for (copy, bytes) in [(0, 1000), (1, 10)] {
            let buffer = ring.take(&fake, bytes).unwrap();
            ring.give(buffer, copy);
        }
        fake.arrived.set(2);
        let small = ring.take(&fake, 7).unwrap();
        assert_eq!(small, Buffer(1, 10));
        ring.give(small, 2);
        // 1000 bytes are free, but not enough; then one is under way, and not enough either.
        let large = ring.take(&fake, 5000).unwrap();
        assert_eq!(large, Buffer(2, 5000));
        ring.give(large, 3);
        let again = ring.take(&fake, 6000).unwrap();
        assert_eq!((again, fake.waits.get()), (Buffer(3, 6000), 1));
        assert_eq!(ring.free.len() + ring.under_way.len(), 1);
    }

    /// Whatever is asked for, no buffer is in two hands, and there are never more than said.
    #[test]
    fn no_buffer_is_written_while_it_is_read() {
        let fake = Fake::default();
        let mut ring = Ring::new(4);
        let mut read: Vec<(usize, usize)> = Vec::new(); // the buffer of each copy under way
        let mut random = 1u32;
        for copy in 0..2000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let late = (random >> 16) as usize % 6;
            fake.arrived.set(
                fake.arrived
                    .get()
                    .max((copy + 1usize).saturating_sub(late))
                    .min(copy),
            );
            let buffer = ring.take(&fake, 1 + (random >> 8) as usize % 300).unwrap();
            read.retain(|(number, _)| *number >= fake.arrived.get());
            assert!(read.iter().all(|(_, used)| *used != buffer.0));
            read.push((copy, buffer.0));
            ring.give(buffer, copy);
            assert!(ring.free.len() + ring.under_way.len() <= 4);
        }
        assert!(fake.waits.get() > 0);
    }
}
