//! The images that the cases work on. Made once, by the reference, and kept for the next run.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::scripts::{self, each};
use crate::reference::Reference;

/// Bytes of the disk with mixed data: large enough that starting does not count, small enough for all cases to
/// end within five minutes.
pub(super) const MIXED_BYTES: u64 = 256 << 20;
/// Bytes of the disk that is overwritten; copied before each run.
pub(super) const FULL_BYTES: u64 = 64 << 20;
pub(super) const CLUSTER: u64 = 64 << 10;
/// Snapshots of the image that has many.
const SNAPSHOTS: u64 = 2_000;
/// Writes of a cluster to one layer of a chain: a seventh of the disk.
const LAYER_WRITES: u64 = 600;
/// Layers of the longest chain above its base.
const LAYERS: u64 = 3;
/// Bytes of the disk with more tables than caches hold, all of them allocated.
pub(super) const WIDE_BYTES: u64 = 1 << 40;

/// Makes what is not there yet.
pub fn make(reference: &Reference, directory: &Path) -> Result<()> {
    scripts::write_all(directory)?;
    single(reference, directory)?;
    layers(reference, directory)?;
    tables(reference, directory)
}

/// Images that stand alone.
fn single(reference: &Reference, directory: &Path) -> Result<()> {
    let done = directory.join("done-4");
    if done.exists() {
        return Ok(());
    }
    eprintln!("making images in {}", directory.display());
    mixed(&directory.join("mixed.raw"))?;
    sparse(&directory.join("sparse.raw"))?;
    let img = |args: &[&str]| run(&reference.img, args, directory, None);
    img(&["create", "-q", "-f", "qcow2", "small.qcow2", "1G"])?;
    img(&["convert", "-f", "raw", "-O", "qcow2", "mixed.raw", "mixed.qcow2"])?;
    img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "mixed.raw", "zlib.qcow2"])?;
    let zstd = "compression_type=zstd";
    img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", zstd, "mixed.raw", "zstd.qcow2"])?;
    img(&["create", "-q", "-f", "qcow2", "empty.qcow2", "256G"])?;
    img(&["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "sequential.qcow2", "64G"])?;
    img(&["create", "-q", "-f", "qcow2", "full.qcow2", "64M"])?;
    run(&reference.io, &["-f", "qcow2", "-c", "write 0 64M", "full.qcow2"], directory, None)?;
    img(&["create", "-q", "-f", "qcow2", "fresh.qcow2", "1G"])?;
    img(&["create", "-q", "-f", "qcow2", "-b", "mixed.raw", "-F", "raw", "overlay.qcow2", "1G"])?;
    img(&["create", "-q", "-f", "qcow2", "fragmented.qcow2", "1T"])?;
    let script = directory.join("fragment.io");
    run(&reference.io, &["-t", "unsafe", "-f", "qcow2", "fragmented.qcow2"], directory, Some(&script))?;
    for kind in ["sequential", "fragmented"] {
        let (from, to) = (directory.join(format!("{kind}.qcow2")), format!("{kind}-snapshots.qcow2"));
        copy(&from, &directory.join(&to))?;
        img(&["snapshot", "-c", "a", &to])?;
        img(&["snapshot", "-c", "b", &to])?;
    }
    copy(&directory.join("full.qcow2"), &directory.join("many-snapshots.qcow2"))?;
    for number in 0..SNAPSHOTS {
        img(&["snapshot", "-c", &format!("s{number}"), "many-snapshots.qcow2"])?;
    }
    fs::write(done, "").context("marking the images as made")
}

/// Chains of images, and images that differ here and there.
fn layers(reference: &Reference, directory: &Path) -> Result<()> {
    let done = directory.join("done-layers-1");
    if done.exists() {
        return Ok(());
    }
    let mut numbers = Numbers(13);
    for layer in 1..=LAYERS {
        let name = format!("layer-{layer}.io");
        let script = each(LAYER_WRITES, |i| {
            let cluster = numbers.next() % (MIXED_BYTES / CLUSTER);
            format!("write -q -P {} {} 64k", (i + layer) % 255, cluster * CLUSTER)
        });
        fs::write(directory.join(&name), script).context(name)?;
    }
    let fill = |image: &str, script: &str| {
        run(&reference.io, &["-t", "unsafe", "-f", "qcow2", image], directory, Some(&directory.join(script)))
    };
    let overlay = |image: &str, below: &str, script: &str| {
        let args = ["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", image];
        run(&reference.img, &args, directory, None)?;
        fill(image, script)
    };
    for same in ["commit-base.qcow2", "other.qcow2"] {
        copy(&directory.join("mixed.qcow2"), &directory.join(same))?;
    }
    fill("other.qcow2", "layer-2.io")?;
    overlay("commit.qcow2", "commit-base.qcow2", "layer-1.io")?;
    overlay("rebase.qcow2", "mixed.qcow2", "layer-1.io")?;
    let mut below = "mixed.qcow2".to_owned();
    for layer in 1..=LAYERS {
        let image = format!("chain-{layer}.qcow2");
        overlay(&image, &below, &format!("layer-{layer}.io"))?;
        below = image;
    }
    fs::write(done, "").context("marking the chains as made")
}

/// Images with many tables, with tables of another form, and without refcounts.
fn tables(reference: &Reference, directory: &Path) -> Result<()> {
    let done = directory.join("done-tables-1");
    if done.exists() {
        return Ok(());
    }
    let create = |name: &str, options: &str, size: u64| {
        let size = size.to_string();
        run(&reference.img, &["create", "-q", "-f", "qcow2", "-o", options, name, &size], directory, None)
    };
    create("wide.qcow2", "preallocation=metadata", WIDE_BYTES)?;
    create("extended.qcow2", "extended_l2=on", 1 << 30)?;
    create("lost.qcow2", "preallocation=metadata", 8 << 30)?;
    forget_refcounts(&directory.join("lost.qcow2"))?;
    fs::write(done, "").context("marking the images with many tables as made")
}

/// Clears the refcount table of an image: all its refcounts are lost.
fn forget_refcounts(path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut fields = [0; 12];
    // qcow2 specification, *Header*: the table's offset, and its length in clusters.
    file.read_exact_at(&mut fields, 48)?;
    let (offset, clusters) = fields.split_at(8);
    let offset = u64::from_be_bytes(offset.try_into().context("eight bytes")?);
    let clusters = u32::from_be_bytes(clusters.try_into().context("four bytes")?);
    let table = vec![0; usize::try_from(u64::from(clusters) * CLUSTER)?];
    file.write_all_at(&table, offset).context("clearing the refcount table")
}

/// Copies an image with its holes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["--sparse=auto", "--reflink=never"]).arg(from).arg(to).status()?;
    if !status.success() {
        bail!("cp {}: {status}", from.display());
    }
    Ok(())
}

fn run(program: &Path, args: &[&str], directory: &Path, input: Option<&Path>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).stdout(Stdio::null());
    command.stdin(match input {
        Some(path) => Stdio::from(File::open(path)?),
        None => Stdio::null(),
    });
    let status = command.status()?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Numbers from a seed (xorshift): the same data every time.
pub(super) struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A quarter each: holes, text-like data, data that compresses to a half, noise; in runs of up to 1 MiB.
fn mixed(path: &Path) -> Result<()> {
    let mut numbers = Numbers(7);
    let mut file = BufWriter::new(File::create(path)?);
    let mut at = 0;
    while at < MIXED_BYTES {
        let len = ((1 + numbers.next() % 16) * CLUSTER).min(MIXED_BYTES - at);
        match numbers.next() % 4 {
            0 => {
                file.seek(SeekFrom::Current(len as i64))?;
            }
            1 => {
                for line in 0..len / 32 {
                    writeln!(file, "{:>31}", (at / 32 + line) % 5_000)?;
                }
            }
            kind => {
                let mask = if kind == 2 { 0x0f0f_0f0f_0f0f_0f0f } else { u64::MAX };
                for _ in 0..len / 8 {
                    file.write_all(&(numbers.next() & mask).to_le_bytes())?;
                }
            }
        }
        at += len;
    }
    file.flush()?;
    file.get_ref().set_len(MIXED_BYTES)?;
    Ok(())
}

/// 4 KiB of data each MiB of 4 GiB.
fn sparse(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    for index in 0..4096u64 {
        file.seek(SeekFrom::Start(index << 20))?;
        file.write_all(&[index as u8 | 1; 4096])?;
    }
    file.set_len(4 << 30)?;
    Ok(())
}
