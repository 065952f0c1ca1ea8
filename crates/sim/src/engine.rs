//! The real subject: the qcow2 engine, looked at by the independent checker.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use cowbell_block::node::{Access, Node};
use cowbell_block::{Amend, BoxFuture, Buf, Child, ErrorKind, Force, OptionTree, Request, Result, Secrets};
use cowbell_checker::{
    CheckError, Checker, Class, Extent, Finding, GuestView, Limits, Peek, ReadAt, Report, Severity,
    SnapshotFault, Source as Place, Verdict,
};
use cowbell_luks::create::HeaderPlace;
use cowbell_luks::{CipherSpec, Hash};
use cowbell_qcow2::{
    CompressionType, CreateOptions, DataFile, DataFileForm, Discards, EncryptionMethod, L2Format,
    NewEncryption, OpenOptions, Qcow2, Recording, Unlock,
};

use crate::bitmaps::BitmapChange;
use crate::config::{Backing, Config, Crypt, DataPlace, Prestate};
use crate::disk::{Clock, HostConfig, SimDisk};
use crate::exec::{Granularity, Strategy, World};
use crate::guest::state::STATE_SECTORS;
use crate::image::{self, Built, data_disk};
use crate::judge::Failure;
use crate::keys::{Opened, Opener, PASSPHRASES, Repeating, passphrase};
use crate::pool::{Content, Pool, SECTOR, ZERO};
use crate::recorded;
use crate::rng::Rng;
use crate::scenario::KeyOp;
use crate::subject::{Area, Files, ImageBytes, Inspection, LocalFuture, Source, Subject};
use crate::timeline::Image;

/// The engine of `cowbell-qcow2`.
pub struct Engine {
    /// Whether snapshot entries that lack extra data, or have too much of it, are let pass.
    forgiving: bool,
    checker: RefCell<Checker>,
    extents: RefCell<Vec<Extent>>,
    opened: RefCell<Opened>,
}

impl Default for Engine {
    fn default() -> Self {
        let limits = Limits { findings_max: 256, ..Limits::default() };
        Self {
            forgiving: false,
            checker: RefCell::new(Checker::new(limits)),
            extents: RefCell::default(),
            opened: RefCell::default(),
        }
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
        let encrypted = config.crypt != Crypt::None;
        let outside = config.data != DataPlace::Inside;
        if config.prestate == Prestate::Created || outside || encrypted {
            built.image = created(config, pool);
        }
        if outside || encrypted {
            // There are no snapshots beside a data file, and what the engine has made holds nothing yet.
            built.snapshots.clear();
            built.image = filled(&built, config, pool);
        }
        if config.bitmaps {
            built.image = with_bitmap(&built.image, config, pool);
        }
        built
    }

    fn open(&self, files: Files, config: &Config) -> BoxFuture<Result<Arc<dyn Node>>> {
        let behind_is_image = config.backing.is_qcow2();
        let (crypt, keyed) = (config.crypt, config.crypt == Crypt::Luks);
        let options = OpenOptions {
            access: Access::ReadWrite,
            l2_cache_bytes: config.l2_cache_bytes,
            slice_bytes: config.l2_slice_bytes.min(1 << config.cluster_bits) as u32,
            refcount_cache_bytes: config.refcount_cache_bytes,
            discards: Discards::from_bits_truncate(config.discard),
            data_file: files.data,
            ..OpenOptions::default()
        };
        Box::pin(async move {
            let backing = match files.backing {
                Some(file) if behind_is_image => {
                    let node: Arc<dyn Node> = Qcow2::open(file, None, OpenOptions::default()).await?;
                    Some(node)
                }
                other => other,
            };
            // Any of the passphrases may be gone, and another one there.
            let mut passphrases = 0..if keyed { PASSPHRASES.len() } else { 1 };
            loop {
                let unlock = unlock(crypt, passphrases.next().unwrap_or(0));
                let options = OpenOptions { unlock, ..options.clone() };
                match Qcow2::open(files.image.clone(), backing.clone(), options).await {
                    Err(error) if error.kind() == ErrorKind::PermissionDenied && !passphrases.is_empty() => {}
                    opened => return Ok(opened? as Arc<dyn Node>),
                }
            }
        })
    }

    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection {
        let mut checker = self.checker.borrow_mut();
        let mut inspection = Inspection::default();
        match checker.check(image) {
            Ok(report) => {
                let severity = |class| match (class, report.summary.dirty) {
                    (Class::Snapshot, _) if self.forgives(report) => Severity::Leak,
                    (class, true) => Class::severity_when_dirty(class),
                    (class, false) => Class::severity(class),
                };
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
                // And it wants passphrases, which it is not told.
                let can_be_asked = !report.summary.dirty && config.crypt == Crypt::None;
                inspection.in_reference =
                    can_be_asked.then(|| match report.verdict_with(Class::severity_in_reference) {
                        Verdict::Clean => 0,
                        Verdict::LeaksOnly => 3,
                        Verdict::Corrupt => 2,
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
        match config.crypt {
            Crypt::None => {}
            Crypt::Aes => inspection.opener = Some(Opener::of_old()),
            Crypt::Luks => {
                let locks = self.opened.borrow_mut().look(image);
                (inspection.keys, inspection.opener) = (locks.keys, locks.opener);
                if locks.dead > 0 && inspection.corrupt.is_none() {
                    let what = format!("{} key slots in use open with no passphrase", locks.dead);
                    inspection.corrupt = Some(Failure::new("M3", what));
                }
            }
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

    fn change_bitmaps<'a>(&self, node: &'a dyn Node, change: BitmapChange) -> LocalFuture<'a, Result<()>> {
        match node.as_any().downcast_ref::<Qcow2>() {
            Some(node) => Box::pin(change_bitmaps(node, change)),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn change_keys<'a>(&self, node: &'a dyn Node, change: KeyOp) -> LocalFuture<'a, Result<()>> {
        let (KeyOp::Add(number) | KeyOp::Remove(number)) = change;
        let (state, name) = match change {
            KeyOp::Add(_) => ("active", "encrypt.new-secret"),
            KeyOp::Remove(_) => ("inactive", "encrypt.old-secret"),
        };
        let mut options = OptionTree::new();
        options.insert("encrypt.state".to_owned(), state.into());
        options.insert(name.to_owned(), "it".into());
        let mut secrets = Secrets::default();
        secrets.add("it", passphrase(number as usize)).expect("it is the only one");
        Box::pin(node.amend(options, Amend { force: Force::No, secrets }))
    }

    fn is_quiet(&self, node: &dyn Node) -> std::result::Result<(), String> {
        match node.as_any().downcast_ref::<Qcow2>() {
            Some(node) if !node.is_quiet() => Err("the engine is not quiet at the end".into()),
            _ => Ok(()),
        }
    }
}

async fn change_bitmaps(node: &Qcow2, change: BitmapChange) -> Result<()> {
    match change {
        BitmapChange::Add(name) => node.add_bitmap(&name, 4096).await,
        BitmapChange::Remove(name) => node.remove_bitmap(&name).await,
        BitmapChange::Clear(name) => node.clear_bitmap(&name).await,
        BitmapChange::Record(name, true) => node.set_recording(&name, Recording::On).await,
        BitmapChange::Record(name, false) => node.set_recording(&name, Recording::Off).await,
        BitmapChange::Merge { into, from } => {
            let mut source = node.read_bitmap(&from).await?;
            node.merge_bitmap(&into, &mut source).await
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
    /// One that lets pass what [`crate::damaged`] does to snapshot tables.
    pub(crate) fn with_broken_snapshot_tables() -> Self {
        Self { forgiving: true, ..Self::default() }
    }

    /// Whether that is all that is wrong with the snapshots.
    fn forgives(&self, report: &Report) -> bool {
        let is_known = |finding: &Finding| match finding {
            Finding::Snapshot { fault, .. } => {
                matches!(fault, SnapshotFault::ExtraTooShort | SnapshotFault::ExtraTooLong)
            }
            _ => true,
        };
        self.forgiving && report.findings().iter().all(is_known)
    }

    fn views(
        &self,
        image: &ImageBytes<'_>,
        config: &Config,
        snapshots: u32,
        inspection: &mut Inspection,
    ) -> std::result::Result<(), CheckError> {
        let contents = &mut inspection.contents;
        let active = GuestView::active(image)?;
        inspection.guest = self.sources(image, config, active, 0, contents)?;
        let state = |view: GuestView, contents: &mut Vec<_>| {
            let (view, start) = view.with_vm_state((STATE_SECTORS * SECTOR) as u64);
            let mut sources = self.sources(image, config, view, start, contents)?;
            // Nothing lies behind it.
            let behind = sources.iter_mut().filter(|source| **source == Source::Behind);
            behind.for_each(|source| *source = Source::Fixed(ZERO));
            Ok::<_, CheckError>(Area { first: start / SECTOR as u64, sources })
        };
        if config.vm_state {
            inspection.state = state(active, contents)?;
        }
        for index in 0..snapshots {
            let view = GuestView::snapshot(image, index)?;
            inspection.snapshots.push(self.sources(image, config, view, 0, contents)?);
            if config.vm_state {
                inspection.snapshot_states.push(state(view, contents)?);
            }
        }
        Ok(())
    }

    fn sources(
        &self,
        image: &ImageBytes<'_>,
        config: &Config,
        view: GuestView,
        from: u64,
        contents: &mut Vec<[u8; SECTOR]>,
    ) -> std::result::Result<Vec<Source>, CheckError> {
        let mut extents = self.extents.borrow_mut();
        extents.clear();
        view.extents(image, from, u64::MAX, &mut extents)?;
        let mut out = Vec::with_capacity(config.sectors as usize);
        for extent in &*extents {
            let sectors = extent.len.div_ceil(SECTOR as u64);
            match extent.source {
                Place::Data { host } => {
                    let first = (host / SECTOR as u64) as u32;
                    out.extend((first..first + sectors as u32).map(Source::File));
                }
                Place::DataFile { offset } => {
                    let first = (offset / SECTOR as u64) as u32;
                    out.extend((first..first + sectors as u32).map(Source::Data));
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
                Place::Invalid(_) => {
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
    let form = match config.data {
        DataPlace::Raw => DataFileForm::Raw,
        DataPlace::Inside | DataPlace::Outside => DataFileForm::Dependent,
    };
    let outside = config.data != DataPlace::Inside;
    let options = CreateOptions {
        version: config.version,
        cluster_bits: config.cluster_bits,
        refcount_order: config.refcount_order,
        size: config.sectors * SECTOR as u64,
        lazy_refcounts: config.lazy,
        preallocation: config.preallocation,
        data_file: outside.then(|| DataFile { name: "data".to_owned(), form }),
        backing_file: backed.then(|| "backing".to_owned()),
        backing_format: backed.then(|| if config.backing.is_qcow2() { "qcow2" } else { "raw" }.to_owned()),
        compression: if config.zstd { CompressionType::Zstd } else { CompressionType::Zlib },
        l2_format: if config.extended { L2Format::Extended } else { L2Format::Standard },
    };
    let encryption = encryption(config.crypt);
    edit(&Image::default(), config, pool, |files| async move {
        let child = Child::new(files.image);
        cowbell_qcow2::create_encrypted(&child, files.data, &options, encryption.as_ref()).await
    })
}

/// How a new image is encrypted.
fn encryption(crypt: Crypt) -> Option<NewEncryption> {
    let method = match crypt {
        Crypt::None => return None,
        Crypt::Aes => EncryptionMethod::Aes,
        Crypt::Luks => EncryptionMethod::Luks(cowbell_luks::CreateOptions {
            spec: CipherSpec::LEGACY_AES,
            hash: Hash::Sha256,
            iter_time_ms: 1,
            place: HeaderPlace::WithPayload,
        }),
    };
    Some(NewEncryption {
        method,
        passphrase: passphrase(0),
        outside: Arc::new(Repeating::new(0)),
        spawner: None,
    })
}

/// What an image is opened with.
fn unlock(crypt: Crypt, number: usize) -> Unlock {
    match crypt {
        Crypt::None => Unlock::default(),
        Crypt::Aes | Crypt::Luks => Unlock {
            passphrase: Some(passphrase(number)),
            outside: Some(Arc::new(Repeating::new(1))),
            ..Unlock::default()
        },
    }
}

/// The image with what the guest of `built` has that does not lie behind: whole clusters and subclusters, of which nothing
/// has to be copied.
fn filled(built: &Built, config: &Config, pool: &mut Pool) -> Image {
    let guest = &built.guest;
    let behind = |sector: u64| built.backing.as_ref().and_then(|behind| behind.get(sector as usize));
    let is_data = |sector: &u64| guest[*sector as usize] != behind(*sector).copied().unwrap_or(ZERO);
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(first) = (at..config.sectors).find(is_data) {
        // In whole clusters where they are whole.
        let cluster_end =
            ((first / config.cluster_sectors() + 1) * config.cluster_sectors()).min(config.sectors);
        at = (first..cluster_end).find(|sector| !is_data(sector)).unwrap_or(cluster_end);
        let bytes: Vec<u8> = (first..at).flat_map(|sector| *pool.bytes(guest[sector as usize])).collect();
        pieces.push((first * SECTOR as u64, bytes));
    }
    let crypt = config.crypt;
    edit(&built.image, config, pool, |files| async move {
        let node = writable(files, crypt).await?;
        for (offset, bytes) in pieces {
            node.submit(Request::write(offset, Buf::copy_of(&bytes))).finish().await.result?;
        }
        node.close().await
    })
}

/// The image with a bitmap that records from now on.
fn with_bitmap(image: &Image, config: &Config, pool: &mut Pool) -> Image {
    let crypt = config.crypt;
    edit(image, config, pool, |files| async move {
        let node = writable(files, crypt).await?;
        node.add_bitmap("changes", 1024).await?;
        node.close().await
    })
}

/// Opens an image with damage that only a check may see.
pub(crate) async fn open_for_check(
    file: Arc<dyn Node>,
    backing: Option<Arc<dyn Node>>,
) -> Result<Arc<dyn Node>> {
    let options = OpenOptions { access: Access::ReadWrite, skip_repair: true, ..OpenOptions::default() };
    Ok(Qcow2::open(file, backing, options).await?)
}

async fn writable(files: Files, crypt: Crypt) -> Result<Arc<Qcow2>> {
    let options = OpenOptions {
        access: Access::ReadWrite,
        data_file: files.data,
        unlock: unlock(crypt, 0),
        ..OpenOptions::default()
    };
    Qcow2::open(files.image, None, options).await
}

/// What some work makes of an image, on disks of its own.
pub(crate) fn edit<F>(image: &Image, config: &Config, pool: &mut Pool, work: impl FnOnce(Files) -> F) -> Image
where
    F: Future<Output = Result<()>> + 'static,
{
    let own = Pool::shared();
    let moved = |content: &Content| own.lock().intern(pool.bytes(*content));
    let before = Image { sectors: image.sectors.iter().map(moved).collect(), ..*image };
    let (clock, host, rng) = (Clock::default(), HostConfig::default(), Rng::new(0));
    let disk = SimDisk::new(
        "image",
        &own,
        &clock,
        before.parts(config.data).0,
        image.len,
        host.clone(),
        rng.clone(),
    );
    let data = data_disk(&before, config, &own, &clock, &host, rng);
    let disks = std::iter::once(disk.clone()).chain(data.clone()).collect();
    let mut world = World::new(disks, Strategy::Fifo, Granularity::IoPoints);
    let files = Files { image: disk.node(), backing: None, data: data.as_ref().map(SimDisk::node) };
    world.block_on(work(files)).expect("nothing blocks").expect("the configuration is possible");
    let own = own.lock();
    let mut back = |sectors: Vec<Content>| -> Vec<Content> {
        sectors.into_iter().map(|content| pool.intern(own.bytes(content))).collect()
    };
    let (sectors, len) = disk.content();
    let after = Image { sectors: back(sectors), len, data_len: 0 };
    match data {
        Some(data) => {
            let (sectors, len) = data.content();
            after.with_data(&back(sectors), len)
        }
        None => after,
    }
}
