//! The real subject: the qcow2 engine, looked at by the independent checker.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use cowbell_block::node::{Access, Node};
use cowbell_block::{BoxFuture, Child, Result};
use cowbell_checker::{
    CheckError, Checker, Class, Extent, GuestView, Limits, Peek, ReadAt, Report, Source as Place, Verdict,
};
use cowbell_qcow2::{CompressionType, CreateOptions, Discards, L2Format, OpenOptions, Qcow2};

use crate::config::{Backing, Config, Prestate};
use crate::disk::{Clock, HostConfig, SimDisk};
use crate::exec::{Granularity, Strategy, World};
use crate::image::{self, Built};
use crate::judge::Failure;
use crate::pool::{Pool, SECTOR, ZERO};
use crate::recorded;
use crate::rng::Rng;
use crate::subject::{ImageBytes, Inspection, LocalFuture, Source, Subject};
use crate::timeline::Image;

/// The engine of `cowbell-qcow2`.
pub struct Engine {
    checker: RefCell<Checker>,
    extents: RefCell<Vec<Extent>>,
}

impl Default for Engine {
    fn default() -> Self {
        let limits = Limits { findings_max: 256, ..Limits::default() };
        Self { checker: RefCell::new(Checker::new(limits)), extents: RefCell::default() }
    }
}

impl ReadAt for ImageBytes<'_> {
    fn len(&self) -> u64 {
        self.bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(offset, buf);
        Ok(())
    }

    fn peek(&self, offset: u64, len: u64) -> Peek<'_> {
        match self.zeroes(offset, len) {
            0 => Peek::Bytes(self.sector_at(offset)),
            zeroes => Peek::Zeroes(zeroes),
        }
    }
}

impl Subject for Engine {
    fn build(&self, config: &Config, pool: &mut Pool) -> Built {
        let mut built = image::build(config, pool);
        if config.prestate == Prestate::Created {
            built.image = created(config, pool);
        }
        if config.bitmaps {
            built.image = with_bitmap(&built.image, pool);
        }
        built
    }

    fn open(
        &self,
        file: Arc<dyn Node>,
        backing: Option<Arc<dyn Node>>,
        config: &Config,
    ) -> BoxFuture<Result<Arc<dyn Node>>> {
        let behind_is_image = config.backing.is_qcow2();
        let options = OpenOptions {
            access: Access::ReadWrite,
            l2_cache_bytes: config.l2_cache_bytes,
            slice_bytes: config.l2_slice_bytes.min(1 << config.cluster_bits) as u32,
            refcount_cache_bytes: config.refcount_cache_bytes,
            discards: if config.discard { Discards::all() - Discards::NO_UNREF } else { Discards::empty() },
            ..OpenOptions::default()
        };
        Box::pin(async move {
            let backing = match backing {
                Some(file) if behind_is_image => {
                    let node: Arc<dyn Node> = Qcow2::open(file, None, OpenOptions::default()).await?;
                    Some(node)
                }
                other => other,
            };
            let node: Arc<dyn Node> = Qcow2::open(file, backing, options).await?;
            Ok(node)
        })
    }

    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection {
        let mut checker = self.checker.borrow_mut();
        let mut inspection = Inspection::default();
        match checker.check(image) {
            Ok(report) => {
                let severity =
                    if report.summary.dirty { Class::severity_when_dirty } else { Class::severity };
                if report.verdict_with(severity) == Verdict::Corrupt {
                    // What the dirty bit would have excused is about the bit.
                    let excused = report.verdict_with(Class::severity_when_dirty) != Verdict::Corrupt;
                    let oracle = if config.lazy && excused { "M4" } else { "O3" };
                    inspection.corrupt = Some(Failure::new(oracle, first_corruption(report, severity)));
                } else if report.summary.marked_corrupt {
                    inspection.corrupt = Some(Failure::new("O3", "the corrupt bit is set"));
                }
                inspection.leaks = report.leaks();
                inspection.dirty = report.summary.dirty;
                // A dirty image is repaired by those who open it, so its check says nothing.
                inspection.in_reference = (!report.summary.dirty).then(|| {
                    match report.verdict_with(Class::severity_in_reference) {
                        Verdict::Clean => 0,
                        Verdict::LeaksOnly => 3,
                        Verdict::Corrupt => 2,
                    }
                });
                if report.summary.dirty && !config.lazy {
                    inspection.corrupt =
                        Some(Failure::new("M4", "the dirty bit is set without lazy refcounts"));
                }
            }
            Err(error) => inspection.corrupt = Some(Failure::new("O3", error.to_string())),
        }
        if config.bitmaps && inspection.corrupt.is_none() {
            inspection.recorded = recorded::read(image);
        }
        let snapshots = checker.report().summary.snapshots;
        if inspection.corrupt.is_none()
            && let Err(error) = self.views(image, config, snapshots, &mut inspection)
        {
            inspection.corrupt = Some(Failure::new("O3", error.to_string()));
        }
        inspection
    }

    fn can_check(&self) -> bool {
        true
    }

    fn add_bitmap<'a>(&self, node: &'a dyn Node, name: String) -> LocalFuture<'a, Result<()>> {
        match node.as_any().downcast_ref::<Qcow2>() {
            Some(node) => Box::pin(async move { node.add_bitmap(&name, 4096).await }),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn is_quiet(&self, node: &dyn Node) -> std::result::Result<(), String> {
        match node.as_any().downcast_ref::<Qcow2>() {
            Some(node) if !node.is_quiet() => Err("the engine is not quiet at the end".into()),
            _ => Ok(()),
        }
    }
}

fn first_corruption(report: &Report, severity: impl Fn(Class) -> cowbell_checker::Severity) -> String {
    let bad = |f: &&cowbell_checker::Finding| severity(f.class()) == cowbell_checker::Severity::Corruption;
    match report.findings().iter().find(bad) {
        Some(finding) => finding.to_string(),
        None => format!("{} corruptions", report.corruptions()),
    }
}

impl Engine {
    fn views(
        &self,
        image: &ImageBytes<'_>,
        config: &Config,
        snapshots: u32,
        inspection: &mut Inspection,
    ) -> std::result::Result<(), CheckError> {
        let contents = &mut inspection.contents;
        let active = GuestView::active(image)?;
        inspection.guest = self.sources(image, config, active, contents)?;
        for index in 0..snapshots {
            let view = GuestView::snapshot(image, index)?;
            inspection.snapshots.push(self.sources(image, config, view, contents)?);
        }
        Ok(())
    }

    fn sources(
        &self,
        image: &ImageBytes<'_>,
        config: &Config,
        view: GuestView,
        contents: &mut Vec<[u8; SECTOR]>,
    ) -> std::result::Result<Vec<Source>, CheckError> {
        let mut extents = self.extents.borrow_mut();
        extents.clear();
        view.extents(image, 0, u64::MAX, &mut extents)?;
        let mut out = Vec::with_capacity(config.sectors as usize);
        for extent in &*extents {
            let sectors = extent.len.div_ceil(SECTOR as u64);
            match extent.source {
                Place::Data { host } => {
                    let first = (host / SECTOR as u64) as u32;
                    out.extend((first..first + sectors as u32).map(Source::File));
                }
                Place::Zero => out.extend(std::iter::repeat_n(Source::Fixed(ZERO), sectors as usize)),
                Place::Unallocated => out.extend(std::iter::repeat_n(Source::Behind, sectors as usize)),
                Place::Compressed { host, bytes, within } => {
                    let cluster = unpack(image, host, bytes, config);
                    for sector in 0..sectors {
                        let from = (within + sector * SECTOR as u64) as usize;
                        out.push(Source::New(contents.len() as u32));
                        let found = cluster.get(from..).and_then(|c| c.first_chunk::<SECTOR>());
                        contents.push(found.copied().unwrap_or([0xbd; SECTOR]));
                    }
                }
                // Never equal to anything a guest wrote.
                Place::DataFile { .. } | Place::Invalid(_) => {
                    for _ in 0..sectors {
                        out.push(Source::New(contents.len() as u32));
                        contents.push([0xbd; SECTOR]);
                    }
                }
            }
        }
        Ok(out)
    }
}

/// A compressed cluster's content; empty if it does not decompress.
fn unpack(image: &ImageBytes<'_>, host: u64, bytes: u64, config: &Config) -> Vec<u8> {
    let mut packed = vec![0; bytes as usize];
    image.read(host, &mut packed);
    let mut out = vec![0; 1 << config.cluster_bits];
    // What follows the stream in its last sector belongs to others, so the input's end is not checked.
    let whole = if config.zstd {
        let frame = zstd_safe::find_frame_compressed_size(&packed).unwrap_or(0);
        zstd_safe::decompress(&mut out[..], &packed[..frame]).is_ok_and(|n| n == out.len())
    } else {
        libdeflater::Decompressor::new().deflate_decompress(&packed, &mut out).is_ok()
    };
    if whole { out } else { Vec::new() }
}

/// An image made by the engine's own `create`.
fn created(config: &Config, pool: &mut Pool) -> Image {
    let backed = config.backing != Backing::None;
    #[allow(clippy::needless_update, reason = "more options will come")]
    let options = CreateOptions {
        version: config.version,
        cluster_bits: config.cluster_bits,
        refcount_order: config.refcount_order,
        size: config.sectors * SECTOR as u64,
        lazy_refcounts: config.lazy,
        backing_file: backed.then(|| "backing".to_owned()),
        backing_format: backed.then(|| if config.backing.is_qcow2() { "qcow2" } else { "raw" }.to_owned()),
        compression: if config.zstd { CompressionType::Zstd } else { CompressionType::Zlib },
        l2_format: if config.extended { L2Format::Extended } else { L2Format::Standard },
        ..CreateOptions::default()
    };
    edit(&Image::default(), pool, |file| async move {
        cowbell_qcow2::create(&Child::new(file), None, &options).await
    })
}

/// The image with a bitmap that records from now on.
fn with_bitmap(image: &Image, pool: &mut Pool) -> Image {
    edit(image, pool, |file| async move {
        let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::default() };
        let node = Qcow2::open(file, None, options).await?;
        node.add_bitmap("changes", 1024).await?;
        node.close().await
    })
}

/// What some work makes of an image, on a disk of its own.
fn edit<F>(image: &Image, pool: &mut Pool, work: impl FnOnce(Arc<dyn Node>) -> F) -> Image
where
    F: Future<Output = Result<()>> + 'static,
{
    let own = Pool::shared();
    let before: Vec<_> =
        image.sectors.iter().map(|content| own.lock().intern(pool.bytes(*content))).collect();
    let clock = Clock::default();
    let disk = SimDisk::new("image", &own, &clock, &before, image.len, HostConfig::default(), Rng::new(0));
    let mut world = World::new(vec![disk.clone()], Strategy::Fifo, Granularity::IoPoints);
    world.block_on(work(disk.node())).expect("nothing blocks").expect("the configuration is possible");
    let (sectors, len) = disk.content();
    let own = own.lock();
    Image { sectors: sectors.into_iter().map(|c| pool.intern(own.bytes(c))).collect(), len }
}
