//! `img diff`: where two images, snapshots of one, or an image and its past differ; also as an overlay.

mod overlay;
mod report;

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::SnapshotName;
use cowbell_block::node::Node;
use cowbell_host::block_on;
use cowbell_jobs::compare::{Failure, Side};
use cowbell_jobs::diff::{Diff, Difference, Kind, SameLayer};
use cowbell_jobs::{Error, Progress};
use cowbell_qcow2::{BitmapError, BitmapReader};

use super::lists::{asks_for_help, check_lists};
use super::{Form, Interrupted, bitmap, form, rebase, snapshot};
use crate::context::{Context, Reported, usage};
use crate::flags::{Args, img as flags, look};
use crate::meter::{Audience, Meter};
use crate::open::{How, Image, open};
use overlay::Target;
use report::Report;

/// Something differs.
const STATUS_DIFFERENT: u8 = 1;
/// An image cannot be opened, the overlay cannot be made, or the command line is wrong.
const STATUS_FAILED: u8 = 2;
/// Allocation cannot be asked for.
const STATUS_STATUS: u8 = 3;
/// Data cannot be read.
const STATUS_READ: u8 = 4;

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    // Status 1 says that something differs: whatever else ends the command has another.
    let done = plan(cx, args).and_then(|plan| block_on(whole(cx, args, &plan)));
    done.or_else(|error| {
        cx.report_error(&error);
        Ok(STATUS_FAILED)
    })
}

/// One side, as the user named it.
struct Named<'a> {
    name: &'a str,
    format: Option<&'a str>,
    snapshot: Option<SnapshotName>,
}

/// The command line, understood.
struct Plan<'a> {
    a: Named<'a>,
    b: Named<'a>,
    /// The bitmap of the second that tells.
    bitmap: Option<&'a str>,
    image_opts: bool,
    form: Form,
    target: Option<Target<'a>>,
}

fn plan<'a>(cx: &Context, args: &'a Args) -> Result<Plan<'a>> {
    let form = form(args, &flags::OUTPUT)?;
    let image_opts = args.has(&flags::IMAGE_OPTS);
    let formats = [args.value(&flags::A_FORMAT), args.value(&flags::B_FORMAT)];
    if image_opts && formats.iter().any(Option::is_some) {
        bail!("--image-opts and --format are mutually exclusive");
    }
    let snapshot = |flag| args.value(flag).map(|text| snapshot::parse_name(cx, text)).transpose();
    let snapshots = [snapshot(&look::SNAPSHOT_A)?, snapshot(&look::SNAPSHOT_B)?];
    let bitmap = args.value(&look::BITMAP);
    if bitmap.is_some() && snapshots.iter().any(Option::is_some) {
        return Err(usage("--bitmap tells of the disk as it is: it cannot be used with snapshots"));
    }
    let (a, b, format_b) = match args.operands.as_slice() {
        [a, b] => (a.as_str(), b.as_str(), formats[1]),
        [one] if bitmap.is_some() || snapshots.iter().any(Option::is_some) => {
            if formats[1].is_some() {
                return Err(usage("-F is the format of a second image, and there is none"));
            }
            (one.as_str(), one.as_str(), formats[0])
        }
        [_] => return Err(usage("Expecting two image file names, or one with a snapshot or a bitmap")),
        _ => return Err(usage("Expecting two image file names")),
    };
    check_lists(args.values(&flags::OPTIONS))?;
    if args.values(&flags::OPTIONS).any(asks_for_help) {
        bail!(
            "'{} create -f qcow2 -o help' lists the options of new images",
            cx.path.trim_end_matches(" diff")
        );
    }
    let [snapshot_a, snapshot_b] = snapshots;
    let a = Named { name: a, format: formats[0], snapshot: snapshot_a };
    let b = Named { name: b, format: format_b, snapshot: snapshot_b };
    let target = match args.value(&look::OVERLAY) {
        None if args.has(&flags::OPTIONS) || args.has(&look::OVERLAY_FORMAT) => {
            return Err(usage("-O and -o describe an overlay, which --overlay names"));
        }
        None => None,
        Some(_) if bitmap.is_some() && args.operands.len() == 1 => {
            return Err(usage("an overlay needs to know the image that it is put on: name it first"));
        }
        Some(_) if image_opts || a.snapshot.is_some() => {
            return Err(usage("an overlay can only be put on an image with a plain name, not on a snapshot"));
        }
        Some(name) => Some(Target::new(args, name, a.name)),
    };
    Ok(Plan { a, b, bitmap, image_opts, form, target })
}

/// An image, showing what is compared of it.
struct Opened {
    image: Image,
    /// What lies below a snapshot, closed after it.
    disk: Option<Arc<dyn Node>>,
}

impl Opened {
    async fn close(self) -> Result<()> {
        self.image.close().await?;
        if let Some(disk) = self.disk {
            disk.close().await?;
        }
        Ok(())
    }
}

async fn open_side(cx: &Context, args: &Args, plan: &Plan<'_>, side: &Named<'_>) -> Result<Opened> {
    let how = How {
        image_opts: plan.image_opts,
        force_share: args.has(&flags::FORCE_SHARE),
        side_by_side: 2 + usize::from(plan.target.is_some()),
        ..How::reading(side.name, side.format)
    };
    let mut image = open(cx, &how).await?;
    let disk = match &side.snapshot {
        Some(which) => match snapshot::enter(&mut image, which.clone()).await {
            Ok(disk) => Some(disk),
            Err(e) => {
                image.close().await?;
                return Err(e);
            }
        },
        None => None,
    };
    Ok(Opened { image, disk })
}

async fn whole(cx: &Context, args: &Args, plan: &Plan<'_>) -> Result<u8> {
    let a = open_side(cx, args, plan, &plan.a).await?;
    let b = match open_side(cx, args, plan, &plan.b).await {
        Ok(b) => b,
        Err(e) => {
            a.close().await?;
            return Err(e);
        }
    };
    let status = judge(cx, args, plan, &a, &b).await;
    let (closed_b, closed_a) = (b.close().await, a.close().await);
    let status = status?;
    closed_b?;
    closed_a?;
    Ok(status)
}

async fn judge(cx: &Context, args: &Args, plan: &Plan<'_>, a: &Opened, b: &Opened) -> Result<u8> {
    let quiet = args.has(&flags::QUIET);
    let meter =
        Meter::new(cx, Audience::of(args, &flags::PROGRESS)?.unless(quiet || plan.form == Form::Json));
    let mut report = Report::new(plan.form, quiet);
    let done = tell(cx, args, plan, a, b, &mut report, &meter).await;
    meter.end();
    match done {
        Ok(()) => Ok(if report.differs() { STATUS_DIFFERENT } else { 0 }),
        Err(Stop::Failure(failure)) => Ok(explain(cx, &failure, plan)),
        Err(Stop::Other(error)) => Err(error),
    }
}

/// Why a comparison ends before its end.
enum Stop {
    Failure(Failure),
    Other(anyhow::Error),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Lists what differs, and stores it.
async fn tell(
    cx: &Context,
    args: &Args,
    plan: &Plan<'_>,
    a: &Opened,
    b: &Opened,
    report: &mut Report,
    meter: &Meter,
) -> std::result::Result<(), Stop> {
    let mut walk = Walk::new(plan, a, b, meter).await?;
    let target = match &plan.target {
        Some(target) => Some((target, target.create(cx, args, a, b).await?)),
        None => None,
    };
    report.begin(&describe(plan, &plan.a, a), &describe(plan, &plan.b, b), plan.bitmap);
    let stored = match target {
        None => {
            while let Some(next) = walk.next().await? {
                report.take(&next);
            }
            None
        }
        Some((target, staged)) => Some(target.complete(cx, (a, b), staged, &mut walk, report, meter).await?),
    };
    report.end(stored);
    Ok(())
}

fn describe(plan: &Plan<'_>, named: &Named<'_>, opened: &Opened) -> serde_json::Value {
    let mut value = serde_json::json!({
        "filename": named.name,
        "virtual-size": opened.image.node().len(),
    });
    if let Some(which) = &named.snapshot {
        value["snapshot"] = match which {
            SnapshotName::IdOrName(word) | SnapshotName::Id(word) | SnapshotName::Name(word) => word.clone(),
            SnapshotName::Both { id, .. } => id.clone(),
        }
        .into();
    }
    if plan.image_opts {
        value["options"] = true.into();
    }
    value
}

/// What tells where there are differences.
enum Walk<'a> {
    Compared(Diff<'a>),
    Marked { bits: BitmapReader, from: u64, len: u64, progress: &'a dyn Progress },
}

/// A range that differs, and how; a bitmap does not say how.
struct Next {
    start: u64,
    len: u64,
    kind: Option<Kind>,
    reads_zero: bool,
}

impl From<Difference> for Next {
    fn from(difference: Difference) -> Self {
        let Difference { start, len, kind, reads_zero } = difference;
        Self { start, len, kind: Some(kind), reads_zero }
    }
}

impl<'a> Walk<'a> {
    async fn new(plan: &Plan<'_>, a: &'a Opened, b: &'a Opened, progress: &'a dyn Progress) -> Result<Self> {
        let Some(name) = plan.bitmap else {
            let same = same_layers(plan, a, b);
            return Ok(Self::Compared(Diff::new(&a.image.root, &b.image.root, same, progress)));
        };
        let node = b.image.node();
        let Some(image) = bitmap::qcow2(&node) else {
            bail!("{}: the format '{}' has no bitmaps", plan.b.name, node.driver());
        };
        match bitmap::find(image, name).await? {
            None => Err(BitmapError::NotFound(name.to_owned()).into()),
            Some(found) if found.inconsistent => Err(BitmapError::Inconsistent(name.to_owned()).into()),
            Some(_) => {
                let bits = image.read_bitmap(name).await?;
                Ok(Self::Marked { bits, from: 0, len: node.len(), progress })
            }
        }
    }

    async fn next(&mut self) -> std::result::Result<Option<Next>, Stop> {
        match self {
            Self::Compared(diff) => Ok(diff.next().await?.map(Next::from)),
            Self::Marked { bits, from, len, progress } => {
                if progress.is_cancelled() {
                    return Err(Stop::Other(Interrupted.into()));
                }
                progress.advanced(*from, *len);
                let run =
                    bits.next_dirty(*from).await.map_err(|e| anyhow!("the bitmap cannot be read: {e}"))?;
                // A bitmap may go on in the last unit behind the end of the disk.
                let Some(run) = run.filter(|run| run.start < *len) else { return Ok(None) };
                *from = run.end;
                Ok(Some(Next {
                    start: run.start,
                    len: run.end.min(*len) - run.start,
                    kind: None,
                    reads_zero: false,
                }))
            }
        }
    }
}

/// The layers of the two chains that are the same image, as far as names tell.
fn same_layers(plan: &Plan<'_>, a: &Opened, b: &Opened) -> Vec<SameLayer> {
    if plan.image_opts {
        // Options may make two disks of one file.
        return Vec::new();
    }
    let layers = |opened: &Opened, named: &Named<'_>| {
        let chain = cowbell_block::Chain::of(opened.image.node());
        // A snapshot is not what its file shows otherwise.
        let is_plain = |depth: usize| depth > 0 || named.snapshot.is_none();
        let layers = chain.layers().iter().enumerate();
        let path = |(depth, layer)| is_plain(depth).then(|| rebase::real_path(layer)).flatten();
        layers.map(|(depth, layer)| (layer.driver(), path((depth, layer)))).collect::<Vec<_>>()
    };
    let (of_a, of_b) = (layers(a, &plan.a), layers(b, &plan.b));
    let mut same = Vec::new();
    for (depth_a, layer) in of_a.iter().enumerate().filter(|(_, (_, path))| path.is_some()) {
        let there = of_b.iter().enumerate().filter(|(_, other)| *other == layer);
        same.extend(there.map(|(depth_b, _)| (depth_a, depth_b)));
    }
    same
}

fn explain(cx: &Context, failure: &Failure, plan: &Plan<'_>) -> u8 {
    let name = match failure.side {
        Side::A => plan.a.name,
        Side::B => plan.b.name,
    };
    match &failure.error {
        Error::Status { offset, source } => {
            cx.report(format_args!("Sector allocation test failed for {name} at offset {offset}: {source}"));
            STATUS_STATUS
        }
        Error::Read { offset, source } => {
            cx.report(format_args!("Error while reading offset {offset} of {name}: {source}"));
            STATUS_READ
        }
        Error::Cancelled => {
            cx.report(Interrupted);
            STATUS_FAILED
        }
        other => {
            cx.report(other);
            STATUS_FAILED
        }
    }
}

/// A failure of the overlay, which has been explained.
fn reported() -> Stop {
    Stop::Other(anyhow::Error::new(Reported))
}
