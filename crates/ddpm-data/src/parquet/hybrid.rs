//! Parquet's packing of small numbers: runs of one number, and groups of eight in as few bits as they need.

use super::thrift::Result;

/// Numbers that are read one after the other. The bytes are handed in each time: they belong to the page.
#[derive(Debug)]
pub(super) struct Hybrid {
    at: usize,
    end: usize,
    width: u32,
    run: Run,
}

#[derive(Debug)]
enum Run {
    /// One number, so many times.
    Same { value: u32, left: u64 },
    /// So many numbers of `width` bits, from this bit on.
    Packed { bit: u64, left: u64 },
}

impl Hybrid {
    /// The numbers in `at..end` of a page, of `width` bits each.
    pub(super) fn new(at: usize, end: usize, width: u32) -> Result<Self> {
        if width > 32 {
            return Err(format!("numbers of {width} bits, expected at most 32"));
        }
        let run = Run::Same { value: 0, left: 0 };
        Ok(Self {
            at,
            end,
            width,
            run,
        })
    }

    /// The next number.
    pub(super) fn next(&mut self, page: &[u8]) -> Result<u32> {
        loop {
            match &mut self.run {
                Run::Same { value, left } if *left > 0 => {
                    *left -= 1;
                    return Ok(*value);
                }
                Run::Packed { bit, left } if *left > 0 => {
                    let value = bits(page, self.end, *bit, self.width)?;
                    *bit += u64::from(self.width);
                    *left -= 1;
                    return Ok(value);
                }
                _ => self.begin(page)?,
            }
        }
    }

    /// Reads the head of the next run.
    fn begin(&mut self, page: &[u8]) -> Result<()> {
        let mut head = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.byte(page)?;
            head |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        let width_bytes = self.width.div_ceil(8) as usize;
        if head & 1 == 0 {
            let mut value = 0;
            for place in 0..width_bytes {
                value |= u32::from(self.byte(page)?) << (8 * place);
            }
            self.run = Run::Same {
                value,
                left: head >> 1,
            };
        } else {
            let groups = head >> 1;
            let bit = self.at as u64 * 8;
            let bytes = usize::try_from(groups * u64::from(self.width)).unwrap_or(usize::MAX);
            // The last group may be cut off where its numbers end.
            self.at = self.at.saturating_add(bytes).min(self.end);
            self.run = Run::Packed {
                bit,
                left: groups * 8,
            };
        }
        Ok(())
    }

    fn byte(&mut self, page: &[u8]) -> Result<u8> {
        let byte = (self.at < self.end).then(|| page.get(self.at).copied());
        self.at += 1;
        byte.flatten()
            .ok_or_else(|| "packed numbers that are cut off".to_owned())
    }
}

/// `width` bits from `bit` on, the lowest first.
fn bits(page: &[u8], end: usize, bit: u64, width: u32) -> Result<u32> {
    let first = (bit / 8) as usize;
    let last = ((bit + u64::from(width)).div_ceil(8)) as usize;
    if last > end {
        return Err("packed numbers that are cut off".to_owned());
    }
    let bytes = page
        .get(first..last)
        .ok_or("packed numbers that are cut off")?;
    let mut value = 0u64;
    for (place, byte) in bytes.iter().enumerate() {
        value |= u64::from(*byte) << (8 * place);
    }
    let mask = (1u64 << width) - 1;
    Ok((value >> (bit % 8) & mask) as u32)
}
