//! Compressed clusters: raw deflate or Zstandard, each of exactly one cluster.
//!
//! Codecs keep memory for the next cluster, since making it anew costs as much as compressing; one is in use per core.
//!
//! What comes from an image is hostile until decoded: output is bounded by the cluster, trailing bytes of the
//! last sector are ignored, anything short of a whole cluster is refused.

use cowbell_block::{Buf, Bufs};
use parking_lot::Mutex;
use zstd_safe::CCtx;

use crate::deflate::Encoder;
use crate::header::CompressionType;

/// The reference's level, which is the library's own default.
const ZSTD_LEVEL: i32 = 3;

/// Codecs and memory that wait for their next use.
#[derive(Default)]
pub(crate) struct Codecs {
    zlib: Mutex<Vec<Box<Encoder>>>,
    zstd: Mutex<Vec<CCtx<'static>>>,
    outputs: Mutex<Vec<Vec<u8>>>,
}

impl Codecs {
    /// Compresses one cluster; `None` if that does not make it shorter. What is missing of `cluster_size` bytes is
    /// taken to be zero.
    pub fn compress(&self, kind: CompressionType, cluster: &Bufs, cluster_size: usize) -> Option<Vec<u8>> {
        let mut whole = None;
        let plain: &[u8] = match cluster.pieces() {
            [piece] if piece.len() == cluster_size => piece,
            _ => {
                let whole = whole.insert(vec![0; cluster_size]);
                cluster.read_at(0, &mut whole[..cluster.len()]);
                whole
            }
        };
        let mut output = self.outputs.lock().pop().unwrap_or_default();
        output.resize(cluster_size - 1, 0);
        let len = match kind {
            CompressionType::Zlib => self.deflate(plain, &mut output),
            CompressionType::Zstd => self.zstd(plain, &mut output),
        };
        match len {
            Some(len) => {
                output.truncate(len);
                Some(output)
            }
            None => {
                self.recycle(output);
                None
            }
        }
    }

    /// Takes back the memory of a compressed cluster.
    pub fn recycle(&self, output: Vec<u8>) {
        self.outputs.lock().push(output);
    }

    fn deflate(&self, plain: &[u8], output: &mut [u8]) -> Option<usize> {
        let encoder = self.zlib.lock().pop();
        let mut encoder = encoder.unwrap_or_else(|| Box::new(Encoder::new()));
        let len = encoder.deflate(plain, output);
        self.zlib.lock().push(encoder);
        len
    }

    fn zstd(&self, plain: &[u8], output: &mut [u8]) -> Option<usize> {
        let codec = self.zstd.lock().pop();
        let mut codec = match codec {
            Some(codec) => codec,
            None => CCtx::try_create()?,
        };
        let len = codec.compress(output, plain, ZSTD_LEVEL).ok();
        self.zstd.lock().push(codec);
        len
    }
}

/// Decodes one cluster of `cluster_size` bytes; `None` if the data does not hold one.
pub(crate) fn decompress(kind: CompressionType, stored: &[u8], cluster_size: usize) -> Option<Buf> {
    let mut cluster = Buf::scratch(cluster_size);
    let complete = match kind {
        CompressionType::Zlib => inflate(stored, &mut cluster),
        CompressionType::Zstd => unzstd(stored, &mut cluster),
    };
    complete.then_some(cluster)
}

fn inflate(stored: &[u8], cluster: &mut [u8]) -> bool {
    let len = cluster.len();
    libdeflater::Decompressor::new().deflate_decompress(stored, cluster).is_ok_and(|n| n == len)
}

/// Decodes as a stream: the frame is followed by the padding of its last sector.
fn unzstd(stored: &[u8], cluster: &mut [u8]) -> bool {
    use zstd_safe::{DCtx, InBuffer, OutBuffer};
    let Some(mut context) = DCtx::try_create() else { return false };
    let mut input = InBuffer::around(stored);
    let mut output = OutBuffer::around(cluster);
    loop {
        let before = (input.pos(), output.pos());
        match context.decompress_stream(&mut output, &mut input) {
            Err(_) => return false,
            Ok(_) if output.pos() == output.capacity() => return true,
            // A frame may end before the cluster is full: another may follow. No progress means truncation.
            Ok(_) if (input.pos(), output.pos()) == before => return false,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deflate_round_trip_with_padding_and_damage() {
        let plain: Vec<u8> = (0..65536u32).map(|i| (i / 97) as u8).collect();
        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut packed = vec![0; compressor.deflate_compress_bound(plain.len())];
        let n = compressor.deflate_compress(&plain, &mut packed).unwrap();
        packed.truncate(n);
        packed.resize(n.next_multiple_of(512), 0xaa);
        assert_eq!(&decompress(CompressionType::Zlib, &packed, 65536).unwrap()[..], &plain[..]);
        assert!(decompress(CompressionType::Zlib, &packed, 65536 * 2).is_none(), "short of a cluster");
        assert!(decompress(CompressionType::Zlib, &packed[..n / 2], 65536).is_none(), "truncated");
    }

    #[test]
    fn zstd_round_trip_with_padding_and_damage() {
        let plain: Vec<u8> = (0..65536u32).map(|i| (i / 97) as u8).collect();
        let mut packed = vec![0; zstd_safe::compress_bound(plain.len())];
        let n = zstd_safe::compress(&mut packed[..], &plain, 3).unwrap();
        packed.truncate(n);
        packed.resize(n.next_multiple_of(512), 0);
        assert_eq!(&decompress(CompressionType::Zstd, &packed, 65536).unwrap()[..], &plain[..]);
        assert!(decompress(CompressionType::Zstd, &packed[..n / 2], 65536).is_none(), "truncated");
        assert!(decompress(CompressionType::Zstd, &[0; 512], 65536).is_none(), "no frame");
    }
}
