//! Bytes that are read by place: a file, or a slice that stands for one.

use std::fs::File;
use std::io;

/// Something with a length that can be read from any place, from several threads at once.
pub trait BytesAt: Send + Sync {
    /// How many bytes there are.
    fn length(&self) -> io::Result<u64>;

    /// Fills `out` from `place` on.
    ///
    /// # Errors
    /// Fewer bytes are there, or what the system says.
    fn fill_at(&self, place: u64, out: &mut [u8]) -> io::Result<()>;

    /// The `n` bytes at `place`. Nothing is allocated for bytes that are not there.
    ///
    /// # Errors
    /// As [`fill_at`](Self::fill_at).
    fn bytes_at(&self, place: u64, n: u64) -> io::Result<Vec<u8>> {
        let end = place.checked_add(n);
        if end.is_none_or(|end| self.length().map_or(true, |length| end > length)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; n as usize];
        self.fill_at(place, &mut bytes)?;
        Ok(bytes)
    }
}

impl BytesAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn fill_at(&self, place: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, out, place)
    }

    #[cfg(windows)]
    fn fill_at(&self, place: u64, out: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < out.len() {
            let place = place + done as u64;
            match std::os::windows::fs::FileExt::seek_read(self, &mut out[done..], place)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(())
    }
}

impl<T: AsRef<[u8]> + Send + Sync> BytesAt for io::Cursor<T> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.get_ref().as_ref().len() as u64)
    }

    fn fill_at(&self, place: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.get_ref().as_ref();
        let from = usize::try_from(place).unwrap_or(usize::MAX);
        let there = bytes.get(from..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What is read by place, read from front to back, as archives are opened.
pub(crate) struct Forward<'a, B> {
    pub(crate) bytes: &'a B,
    pub(crate) at: u64,
}

impl<B: BytesAt> io::Read for Forward<'_, B> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.bytes.length()?.saturating_sub(self.at);
        let n = (out.len() as u64).min(left) as usize;
        self.bytes.fill_at(self.at, &mut out[..n])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl<B: BytesAt> io::Seek for Forward<'_, B> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            io::SeekFrom::End(by) => self.bytes.length()?.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
