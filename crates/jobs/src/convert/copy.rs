//! Reading one piece and writing what of it has to be written.

use std::sync::atomic::Ordering;

use cowbell_block::buf::is_zero;
use cowbell_block::{Buf, Bufs, ErrorKind, ExtentFlags, Flags, Mapping, Op, Operation, Request};
use futures_util::future::join_all;

use super::walk::{Kind, Piece};
use super::{Copied, Job, OnReadError, Store, TargetStart};
use crate::crew::DATA_BYTES_MAX;
use crate::error::{Error, Result};
use crate::layers::{self, Reach};

/// What is salvaged at once: the unit in which devices fail.
const SECTOR: u64 = 512;

impl Job<'_> {
    /// The data of a piece, if it has to pass through our memory.
    pub(super) async fn load(&self, piece: &Piece, copied: &mut Copied) -> Result<Option<Buf>> {
        match &piece.kind {
            Kind::Data(Some(_)) if self.offload.load(Ordering::Relaxed) => Ok(None),
            Kind::Data(_) => self.read(piece, copied).await.map(Some),
            Kind::Zero | Kind::Backing => Ok(None),
        }
    }

    /// The data of a piece: of one source, or of several where a whole cluster is wanted.
    async fn read(&self, piece: &Piece, copied: &mut Copied) -> Result<Buf> {
        let len_of = |source: usize| super::walk::rounded(self.sources[source].node().len());
        if piece.source_offset + piece.len <= len_of(piece.source) {
            return self.read_one(piece, copied).await;
        }
        let mut whole = Buf::zeroed(piece.len as usize);
        let mut part = Piece { kind: Kind::Data(None), len: 0, ..*piece };
        let mut at = 0;
        while at < piece.len {
            part.len = (len_of(part.source) - part.source_offset).min(piece.len - at);
            part.target_offset = piece.target_offset + at;
            if part.len > 0 {
                let data = self.read_one(&part, copied).await?;
                whole[at as usize..(at + part.len) as usize].copy_from_slice(&data);
                data.recycle();
            }
            at += part.len;
            part.source += 1;
            part.source_offset = 0;
        }
        Ok(whole)
    }

    async fn read_one(&self, piece: &Piece, copied: &mut Copied) -> Result<Buf> {
        let root = &self.sources[piece.source];
        let offset = piece.source_offset;
        // The last sector of a source may reach over its end.
        let real = piece.len.min(root.node().len() - offset);
        let request = Request::read(offset, Buf::scratch(real as usize));
        let read = root.submit(request).finish().await.into_bufs();
        let bufs = match (read, self.options.on_read_error) {
            (Ok(bufs), _) => bufs,
            (Err(source), OnReadError::Stop) => {
                return Err(Error::Read { offset: piece.target_offset, source });
            }
            (Err(_), OnReadError::Salvage) => self.salvage(piece, real, copied).await,
        };
        if real == piece.len {
            return Ok(bufs.to_contiguous_or_self());
        }
        let mut whole = Buf::zeroed(piece.len as usize);
        bufs.read_at(0, &mut whole[..real as usize]);
        Ok(whole)
    }

    /// Reads sector by sector; what cannot be read is zero.
    async fn salvage(&self, piece: &Piece, len: u64, copied: &mut Copied) -> Bufs {
        let root = &self.sources[piece.source];
        let mut whole = Buf::zeroed(len as usize);
        let mut at = 0;
        while at < len {
            let n = SECTOR.min(len - at);
            let request = Request::read(piece.source_offset + at, Buf::scratch(n as usize));
            match root.submit(request).finish().await.into_bufs() {
                Ok(bufs) => bufs.read_at(0, &mut whole[at as usize..(at + n) as usize]),
                Err(e) => {
                    copied.unreadable += n;
                    self.progress.unreadable(piece.target_offset + at, n, &e);
                }
            }
            at += n;
        }
        whole.into()
    }

    /// Writes a piece, or leaves it out where the target reads right already.
    pub(super) async fn store(&self, piece: Piece, data: Option<Buf>, copied: &mut Copied) -> Result<()> {
        let (offset, len) = (piece.target_offset, piece.len);
        match (&piece.kind, data) {
            (Kind::Backing, _) => {
                copied.skipped += len;
                Ok(())
            }
            (Kind::Zero, _) => self.store_zeroes(offset, len, copied).await,
            (Kind::Data(_), Some(data)) => self.store_data(offset, data, copied).await,
            (Kind::Data(map), None) => {
                let map = map.clone().expect("only mapped data is not loaded");
                if self.copy_range(offset, len, map).await? {
                    copied.data += len;
                    copied.offloaded += len;
                    return Ok(());
                }
                let data = self.read(&piece, copied).await?;
                self.store_data(offset, data, copied).await
            }
        }
    }

    /// Has the host copy a range; `false` when it cannot, and will not be asked again.
    async fn copy_range(&self, offset: u64, len: u64, map: Mapping) -> Result<bool> {
        self.wait_for_pace(len).await;
        let op = Operation::CopyFrom { source: map.node, source_offset: map.offset };
        let request = Request { op, offset, len, ..Request::default() };
        match self.target.submit(request).finish().await.result {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput) => {
                self.offload.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(source) => Err(Error::Write { offset, source }),
        }
    }

    async fn store_zeroes(&self, offset: u64, len: u64, copied: &mut Copied) -> Result<()> {
        if self.options.sparse_bytes == 0 {
            return self.store_explicit_zeroes(offset, len, copied).await;
        }
        if self.options.start == TargetStart::Zero {
            copied.skipped += len;
            return Ok(());
        }
        if self.options.start == TargetStart::Unknown {
            return self.store_missing_zeroes(offset, len, copied).await;
        }
        self.zero(offset, len, copied).await
    }

    /// Writes zeroes where the target does not read so already.
    async fn store_missing_zeroes(&self, offset: u64, len: u64, copied: &mut Copied) -> Result<()> {
        let node = self.target.node();
        let mut at = offset;
        while at < offset + len {
            let extent = layers::status(&node, Reach::Chain, at, offset + len - at).await;
            // A target that cannot say what it holds is written to.
            let (len, zero) = match extent {
                Ok(extent) if extent.len > 0 => (extent.len, extent.flags.contains(ExtentFlags::ZERO)),
                _ => (offset + len - at, false),
            };
            if zero {
                copied.skipped += len;
            } else {
                self.zero(at, len, copied).await?;
            }
            at += len;
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64, copied: &mut Copied) -> Result<()> {
        let request = Request::write_zeroes(offset, len).with_flags(Flags::MAY_UNMAP);
        match self.target.submit(request).finish().await.result {
            Ok(_) => {
                copied.zeroes += len;
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                self.store_explicit_zeroes(offset, len, copied).await
            }
            Err(source) => Err(Error::Write { offset, source }),
        }
    }

    async fn store_explicit_zeroes(&self, offset: u64, len: u64, copied: &mut Copied) -> Result<()> {
        let mut at = 0;
        while at < len {
            let n = DATA_BYTES_MAX.min(len - at);
            self.write(offset + at, Buf::zeroed(n as usize)).await?;
            copied.data += n;
            at += n;
        }
        Ok(())
    }

    async fn store_data(&self, offset: u64, data: Buf, copied: &mut Copied) -> Result<()> {
        if self.grain == 0 {
            copied.data += data.len() as u64;
            return self.write(offset, data).await;
        }
        let mut data = data;
        let mut offset = offset;
        while !data.is_empty() {
            let (zero, len) = first_run(&data, offset, self.grain);
            let run = if len == data.len() {
                std::mem::replace(&mut data, Buf::zeroed(0))
            } else {
                data.split_to(len)
            };
            if zero {
                run.recycle();
                self.store_zeroes(offset, len as u64, copied).await?;
            } else {
                copied.data += len as u64;
                self.write(offset, run).await?;
            }
            offset += len as u64;
        }
        Ok(())
    }

    /// Submits the clusters of a piece that are not zero; zero ones are dealt with at once.
    pub(super) async fn start_compressed(
        &self,
        piece: &Piece,
        mut data: Buf,
        copied: &mut Copied,
    ) -> Result<Vec<(u64, Op)>> {
        let mut offset = piece.target_offset;
        let mut writes = Vec::new();
        while !data.is_empty() {
            let (zero, len) = match self.grain {
                0 => (false, data.len()),
                grain => first_run(&data, offset, grain),
            };
            let run = data.split_to(len);
            if zero {
                self.store_zeroes(offset, len as u64, copied).await?;
            } else {
                copied.data += len as u64;
                self.wait_for_pace(len as u64).await;
                let request = Request::write(offset, run).with_flags(Flags::COMPRESSED);
                writes.push((offset, self.target.submit(request)));
            }
            offset += len as u64;
        }
        Ok(writes)
    }

    /// Waits for all of them, side by side.
    pub(super) async fn finish_all(&self, writes: Vec<(u64, Op)>) -> Result<()> {
        let finish = |(offset, op): (u64, Op)| async move {
            let bufs = op.finish().await.into_bufs().map_err(|source| Error::Write { offset, source })?;
            bufs.recycle();
            Ok(())
        };
        join_all(writes.into_iter().map(finish)).await.into_iter().collect()
    }

    async fn write(&self, offset: u64, data: Buf) -> Result<()> {
        self.wait_for_pace(data.len() as u64).await;
        let flags = match self.options.store {
            Store::Plain => Flags::empty(),
            Store::Compressed { .. } => Flags::COMPRESSED,
        };
        let done = self.target.submit(Request::write(offset, data).with_flags(flags)).finish().await;
        done.into_bufs().map_err(|source| Error::Write { offset, source })?.recycle();
        Ok(())
    }

    async fn wait_for_pace(&self, bytes: u64) {
        if let Some(wait) = self.pace.take(bytes) {
            wait.await;
        }
    }
}

/// Whether `data` begins with zeroes, and for how many bytes that stays so, at the grain of `offset`.
fn first_run(data: &[u8], offset: u64, grain: u64) -> (bool, usize) {
    let first = (grain - offset % grain) as usize;
    let mut end = first.min(data.len());
    let zero = is_zero(&data[..end]);
    while end < data.len() {
        let next = (end + grain as usize).min(data.len());
        if is_zero(&data[end..next]) != zero {
            break;
        }
        end = next;
    }
    (zero, end)
}

#[cfg(test)]
mod tests {
    use super::first_run;

    #[test]
    fn runs_end_at_the_grain_of_the_target() {
        let mut data = [0u8; 64];
        data[20] = 1;
        assert_eq!(first_run(&data, 0, 16), (true, 16));
        assert_eq!(first_run(&data[16..], 16, 16), (false, 16));
        assert_eq!(first_run(&data[32..], 32, 16), (true, 32));
        // Starting inside a grain, the first block is shorter.
        assert_eq!(first_run(&data, 8, 16), (true, 8));
        assert_eq!(first_run(&data[8..], 16, 16), (false, 16));
        assert_eq!(first_run(&data[..10], 0, 16), (true, 10));
    }
}
