//! `demo`: real files into a base image, an overlay on it, writes, and the proof that nothing else changed.
//!
//! Two things are kept side by side: what the block layer made, and `expected.raw`, a plain file to which the
//! same writes were made with the standard library alone. The demo is right only if both agree bit by bit.

mod pack;
mod picture;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use cowbell_block::node::{Access, Fix};
use cowbell_block::options::{DiscardMode, OptionTree};
use cowbell_block::{Buf, Request};
use cowbell_host::block_on;
use cowbell_jobs::compare::{Mode, Verdict, compare};
use cowbell_jobs::convert::{Options, TargetStart, convert};
use cowbell_jobs::diff::Diff;
use cowbell_jobs::{Silent, Unpaced};

use crate::context::Context;
use crate::flags::{Args, top};
use crate::img::target::Format;
use crate::open::{How, Image, open};
use crate::size::human;
use pack::Packed;
use picture::Picture;

/// Writes that the guest makes.
const WRITES: u64 = 96;

/// Runs the demonstration.
///
/// # Errors
/// The first step that does not do what it should.
pub fn run(cx: &Context, args: &Args) -> Result<u8> {
    let from = match args.value(&top::FROM) {
        Some(path) => PathBuf::from(path),
        None => own_tree()?,
    };
    let scratch = Scratch::new(args.has(&top::KEEP))?;
    println!("cowbell demo: images made from the files below {}", from.display());
    println!("in {}\n", scratch.path.display());
    let started = Instant::now();
    block_on(story(cx, &from, &scratch))?;
    println!("\nEverything agreed. {:.2} s in all.", started.elapsed().as_secs_f64());
    if scratch.keep {
        println!("The images are in {}.", scratch.path.display());
    }
    Ok(0)
}

/// The tree that this program was built from, or else the current directory.
fn own_tree() -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match built.canonicalize() {
        Ok(path) => Ok(path),
        Err(_) => std::env::current_dir().context("there is no current directory"),
    }
}

/// The directory of the images, removed at the end.
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn new(keep: bool) -> Result<Self> {
        let base = std::env::temp_dir();
        for attempt in 0..100 {
            let path = base.join(format!("cowbell-demo-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, keep }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        bail!("no free name in {}", base.display())
    }

    fn file(&self, name: &str) -> String {
        self.path.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // Left-overs in the temporary directory are no reason to fail.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// One step: its number and name, then its figures.
struct Steps(u32);

impl Steps {
    fn begin(&mut self, what: &str) -> Instant {
        self.0 += 1;
        println!("{:>2}. {what}", self.0);
        Instant::now()
    }
}

fn figure(text: &str) {
    println!("    {text}");
}

fn rate(bytes: u64, since: Instant) -> String {
    let seconds = since.elapsed().as_secs_f64().max(1e-6);
    format!("{} in {:.1} ms, {}/s", human(bytes), seconds * 1e3, human((bytes as f64 / seconds) as u64))
}

async fn story(cx: &Context, from: &Path, scratch: &Scratch) -> Result<()> {
    let [raw, base, overlay, flat, expected] =
        ["base.raw", "base.qcow2", "overlay.qcow2", "flat.qcow2", "expected.raw"]
            .map(|name| scratch.file(name));
    let mut steps = Steps(0);

    let clock = steps.begin("Pack real files into a raw disk, with a table of contents at its start");
    let packed = pack::pack(from, Path::new(&raw))?;
    figure(&format!("{} files, {}", packed.files.len(), rate(packed.len, clock)));
    if packed.left_out > 0 {
        figure(&format!("{} files were left out: unreadable, or beyond the demo's limit", packed.left_out));
    }

    let clock = steps.begin("Convert it to qcow2: the base image");
    let copied = copy(cx, (&raw, "raw"), &base).await?;
    figure(&format!(
        "{}; {} stored, {} left out as zeroes",
        rate(packed.len, clock),
        human(copied.data),
        human(copied.skipped)
    ));

    steps.begin("Create an overlay on it");
    let mut options = OptionTree::new();
    options.insert("size".into(), packed.len.into());
    options.insert("backing_file".into(), "base.qcow2".into());
    options.insert("backing_fmt".into(), "qcow2".into());
    Format::find(cx, "qcow2", Some(&overlay))?
        .create(cx, &overlay, options, None)
        .await
        .map_err(named(&overlay))?;
    figure(&format!("{} on disk for a disk of {}", human(on_disk(&overlay)?), human(packed.len)));

    let clock = steps.begin("Write to the overlay, and the same to a plain copy made without us");
    fs::copy(&raw, &expected).context("cannot copy the raw disk")?;
    let written = guest_writes(cx, &overlay, &expected, packed.len).await?;
    figure(&format!("{WRITES} writes, {}, flushed once", rate(written, clock)));
    figure(&format!("the overlay has {} on disk now", human(on_disk(&overlay)?)));

    let clock = steps.begin("Compare the overlay with the plain copy, bit by bit");
    agree(cx, (&overlay, "qcow2"), (&expected, "raw")).await?;
    figure(&format!("identical: {}", rate(packed.len, clock)));

    let clock = steps.begin("List what the writes changed; what both have from the base image is not read");
    let (extents, bytes) = changed(cx, &base, &overlay).await?;
    figure(&format!(
        "{extents} extents with {} differ, found in {:.1} ms",
        human(bytes),
        clock.elapsed().as_secs_f64() * 1e3
    ));

    let clock = steps.begin("Flatten the chain into one image, and compare again");
    copy(cx, (&overlay, "qcow2"), &flat).await?;
    agree(cx, (&flat, "qcow2"), (&expected, "raw")).await?;
    figure(&format!("identical: {}", rate(packed.len, clock)));

    steps.begin("The base image has not changed");
    agree(cx, (&base, "qcow2"), (&raw, "raw")).await?;
    figure("identical with what it was made from");

    steps.begin("Check all three");
    for name in [&base, &overlay, &flat] {
        check(cx, name).await?;
    }

    let clock = steps.begin("Read the files back through the base image, by its table of contents");
    let bytes = read_back(cx, &base, &packed, from).await?;
    figure(&format!("{} files identical with those on disk: {}", packed.files.len(), rate(bytes, clock)));

    steps.begin("Where the overlay's content lies");
    let image = open(cx, &How::reading(&overlay, Some("qcow2"))).await?;
    let drawn = Picture::of(&image.node()).await;
    image.close().await?;
    drawn?.print();
    Ok(())
}

fn named(name: &str) -> impl FnOnce(cowbell_block::Error) -> anyhow::Error {
    move |e| anyhow!("{name}: {e}")
}

fn on_disk(path: &str) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path).with_context(|| path.to_owned())?.blocks() * 512)
}

/// Converts into a new qcow2 image.
async fn copy(
    cx: &Context,
    (source, format): (&str, &str),
    target: &str,
) -> Result<cowbell_jobs::convert::Copied> {
    let from = open(cx, &How::reading(source, Some(format))).await?;
    let mut options = OptionTree::new();
    options.insert("size".into(), from.node().len().into());
    Format::find(cx, "qcow2", Some(target))?
        .create(cx, target, options, None)
        .await
        .map_err(named(target))?;
    let to = open(cx, &writing(target)).await?;
    let job = Options { start: TargetStart::Zero, ..Options::default() };
    let copied = convert(std::slice::from_ref(&from.root), &to.root, &job, &Silent, &Unpaced).await;
    to.close().await?;
    from.close().await?;
    copied.map_err(|e| anyhow!("{target}: {e}"))
}

fn writing(name: &str) -> How<'_> {
    How { access: Access::ReadWrite, discard: DiscardMode::Unmap, ..How::reading(name, Some("qcow2")) }
}

/// Writes of a guest: of many sizes, many of them unaligned, at places spread over the disk.
async fn guest_writes(cx: &Context, overlay: &str, expected: &str, len: u64) -> Result<u64> {
    use std::os::unix::fs::FileExt;
    let plain = fs::OpenOptions::new().write(true).open(expected).context("cannot open the plain copy")?;
    let image = open(cx, &writing(overlay)).await?;
    let mut written = 0;
    // A fixed sequence: every run writes the same.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    for number in 0..WRITES {
        let n = (next() % 60_000 + 1).min(len);
        let offset = next() % (len - n + 1);
        let data: Vec<u8> = (0..n).map(|i| (i as u8).wrapping_mul(31).wrapping_add(number as u8)).collect();
        plain.write_all_at(&data, offset).context("cannot write to the plain copy")?;
        let request = Request::write(offset, Buf::copy_of(&data));
        image.root.submit(request).finish().await.into_bufs().map_err(named(overlay))?.recycle();
        written += n;
    }
    image.root.submit(Request::flush()).finish().await.result.map_err(named(overlay))?;
    image.close().await?;
    Ok(written)
}

/// Fails unless both images have the same content.
async fn agree(cx: &Context, a: (&str, &str), b: (&str, &str)) -> Result<()> {
    let (left, right) =
        (open(cx, &How::reading(a.0, Some(a.1))).await?, open(cx, &How::reading(b.0, Some(b.1))).await?);
    let verdict = compare(&left.root, &right.root, Mode::Content, &Silent, || ()).await;
    left.close().await?;
    right.close().await?;
    match verdict {
        Ok(Verdict::Identical) => Ok(()),
        Ok(Verdict::ContentDiffers { offset }) => bail!("{} and {} differ at byte {offset}", a.0, b.0),
        Ok(other) => bail!("{} and {} differ: {other:?}", a.0, b.0),
        Err(failure) => bail!("cannot compare {} with {}: {}", a.0, b.0, failure.error),
    }
}

/// How many ranges of an overlay differ from its base image, and their bytes.
async fn changed(cx: &Context, base: &str, overlay: &str) -> Result<(u64, u64)> {
    let below = open(cx, &How::reading(base, Some("qcow2"))).await?;
    let above = open(cx, &How::reading(overlay, Some("qcow2"))).await?;
    let mut diff = Diff::new(&below.root, &above.root, vec![(0, 1)], &Silent);
    let (mut extents, mut bytes, mut end) = (0, 0, None);
    let walked = loop {
        match diff.next().await {
            Ok(Some(found)) => {
                extents += u64::from(end != Some(found.start));
                bytes += found.len;
                end = Some(found.start + found.len);
            }
            Ok(None) => break Ok(()),
            Err(failure) => break Err(anyhow!("cannot compare {base} with {overlay}: {}", failure.error)),
        }
    };
    drop(diff);
    above.close().await?;
    below.close().await?;
    walked.map(|()| (extents, bytes))
}

async fn check(cx: &Context, name: &str) -> Result<()> {
    let image: Image = open(cx, &How::reading(name, Some("qcow2"))).await?;
    let report = image.node().check(Fix::None).await;
    image.close().await?;
    let report = report.map_err(named(name))?;
    let short = Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    ensure!(
        report.corruptions == 0 && report.leaks == 0 && report.check_errors == 0,
        "{short}: {} corruptions, {} leaks, {} errors",
        report.corruptions,
        report.leaks,
        report.check_errors
    );
    figure(&format!(
        "{short:<14} consistent; {} of {} clusters allocated",
        report.allocated_clusters, report.total_clusters
    ));
    Ok(())
}

/// Reads each file through the image and compares it with the original; the bytes read.
async fn read_back(cx: &Context, name: &str, packed: &Packed, from: &Path) -> Result<u64> {
    let image = open(cx, &How::reading(name, Some("qcow2"))).await?;
    let child = image.root.child().clone();
    let head = child.read(0, packed.contents_len as usize).await.map_err(named(name))?;
    let listed = pack::parse_contents(&head)?;
    ensure!(listed == packed.files, "{name}: the table of contents does not read back as it was written");
    let mut bytes = 0;
    for file in &listed {
        let data = child.read(file.offset, file.len as usize).await.map_err(named(name))?;
        let original = fs::read(from.join(&file.path)).with_context(|| file.path.clone())?;
        // A file that was edited since it was packed is no fault of ours, but the demo cannot vouch for it.
        ensure!(
            data[..] == original[..],
            "{} reads differently through the image (or was just edited)",
            file.path
        );
        bytes += file.len;
    }
    image.close().await?;
    Ok(bytes)
}
