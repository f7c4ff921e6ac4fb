//! Thrift's compact protocol, of which parquet's headers are made: read as it comes, nothing kept that is not asked for.

/// What goes wrong is told in words; the file's name is added by whoever knows it.
pub(super) type Result<T> = std::result::Result<T, String>;

/// Structures in structures, beyond which nothing of parquet's goes.
const DEPTH: usize = 24;

/// The kind of a value, as the protocol numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl Kind {
    const TRUE: Self = Self(1);
    const FALSE: Self = Self(2);
    const BYTE: Self = Self(3);
    const DOUBLE: Self = Self(7);
    const BINARY: Self = Self(8);
    const LIST: Self = Self(9);
    const SET: Self = Self(10);
    const MAP: Self = Self(11);
    const STRUCT: Self = Self(12);
}

/// Bytes being read.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            depth: 0,
        }
    }

    /// How many bytes were read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Reads a structure. `field` gets each field's number and kind, and reads its value, or passes over it with
    /// [`skip`](Self::skip).
    pub(super) fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, i16, Kind) -> Result<()>,
    ) -> Result<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(format!(
                "a header of more than {DEPTH} structures in one another"
            ));
        }
        let mut number = 0i16;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                break;
            }
            number = match byte >> 4 {
                0 => i16::try_from(self.signed()?).map_err(|_| "a field number beyond 16 bits")?,
                step => number.wrapping_add(i16::from(step)),
            };
            field(self, number, Kind(byte & 15))?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a list; `item` gets the kind of its items, and reads one each time.
    pub(super) fn list(
        &mut self,
        kind: Kind,
        mut item: impl FnMut(&mut Self, Kind) -> Result<()>,
    ) -> Result<()> {
        expect(kind == Kind::LIST || kind == Kind::SET, "a list")?;
        let head = self.byte()?;
        let n = match head >> 4 {
            15 => self.varint()?,
            n => u64::from(n),
        };
        for _ in 0..n {
            item(self, Kind(head & 15))?;
        }
        Ok(())
    }

    /// Reads a structure in a field or a list.
    pub(super) fn structure(
        &mut self,
        kind: Kind,
        field: impl FnMut(&mut Self, i16, Kind) -> Result<()>,
    ) -> Result<()> {
        expect(kind == Kind::STRUCT, "a structure")?;
        self.fields(field)
    }

    /// Reads a whole number of any width.
    pub(super) fn integer(&mut self, kind: Kind) -> Result<i64> {
        match kind {
            Kind::BYTE => Ok(i64::from(self.byte()? as i8)),
            Kind(4..=6) => self.signed(),
            _ => expect(false, "a number").map(|()| 0),
        }
    }

    /// Reads yes or no, in a field.
    pub(super) fn flag(&mut self, kind: Kind) -> Result<bool> {
        expect(kind == Kind::TRUE || kind == Kind::FALSE, "yes or no")?;
        Ok(kind == Kind::TRUE)
    }

    /// Reads bytes.
    pub(super) fn binary(&mut self, kind: Kind) -> Result<&'a [u8]> {
        expect(kind == Kind::BINARY, "text")?;
        let n = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        self.take(n)
    }

    /// Reads text.
    pub(super) fn text(&mut self, kind: Kind) -> Result<String> {
        Ok(String::from_utf8_lossy(self.binary(kind)?).into_owned())
    }

    /// Passes over the value of a field.
    pub(super) fn skip(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::TRUE | Kind::FALSE => Ok(()),
            _ => self.skip_item(kind),
        }
    }

    /// Passes over an item of a list: there, yes and no take a byte.
    fn skip_item(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::TRUE | Kind::FALSE | Kind::BYTE => self.byte().map(drop),
            Kind(4..=6) => self.varint().map(drop),
            Kind::DOUBLE => self.take(8).map(drop),
            Kind::BINARY => self.binary(kind).map(drop),
            Kind::LIST | Kind::SET => self.deeper(|r| r.list(kind, Self::skip_item)),
            Kind::STRUCT => self.fields(|r, _, kind| r.skip(kind)),
            Kind::MAP => self.deeper(Self::skip_map),
            Kind(other) => Err(format!("a value of the unknown kind {other} in a header")),
        }
    }

    fn skip_map(&mut self) -> Result<()> {
        let n = self.varint()?;
        if n > 0 {
            let kinds = self.byte()?;
            for _ in 0..n {
                self.skip_item(Kind(kinds >> 4))?;
                self.skip_item(Kind(kinds & 15))?;
            }
        }
        Ok(())
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(format!(
                "a header of more than {DEPTH} lists in one another"
            ));
        }
        read(self)?;
        self.depth -= 1;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..n).ok_or("a header that is cut off")?;
        self.at += n;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("a number beyond 64 bits in a header".to_owned())
    }

    /// Signed numbers alternate: 0, -1, 1, -2, ...
    fn signed(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

fn expect(holds: bool, what: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(format!("another value where {what} should be in a header"))
    }
}
