//! `-` as a name, under the name `cowbell`: standard input and standard output.
//!
//! | what | how |
//! |---|---|
//! | input that is a file | as that file |
//! | raw from a pipe, into a raw or qcow2 image | in one pass; the target grows as it comes |
//! | any other input from a pipe | kept in a nameless file in `TMPDIR` first: formats are not read in order |
//! | raw to standard output | in one pass |
//! | qcow2 to standard output | in one pass where only tables and data are asked for: a pass over the tables of the source says where everything will lie |
//! | any other output | made in a nameless file in `TMPDIR`, then sent |
//!
//! The reference has no such name: under its names `-` is a file.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::Root;
use cowbell_block::options::CacheMode;

use crate::context::Context;
use crate::face::Face;
use crate::open::{Image, reason};

mod pipe;
mod pour;

pub(super) use pipe::PipeNode;
pub(super) use pour::pour;

/// The name.
const DASH: &str = "-";
/// Bytes that are moved at once between a pipe and a file.
const PIECE_BYTES: usize = 1 << 20;

/// Whether `name` means standard input or output here.
pub(super) fn is_dash(cx: &Context, name: &str) -> bool {
    cx.face == Face::Cowbell && name == DASH
}

/// A file without a name, which is gone when this program ends, however that happens.
pub(super) struct Nameless(File);

impl Nameless {
    /// Makes one in `TMPDIR`.
    ///
    /// # Errors
    /// The directory takes no files.
    pub(super) fn new() -> Result<Self> {
        let dir = std::env::temp_dir();
        let path = dir.join(format!("cowbell-pipe-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| anyhow!("Could not make a file in {}: {}", dir.display(), reason(&e)))?;
        // A name that cannot be removed is left behind, and does no harm.
        let _ = std::fs::remove_file(&path);
        Ok(Self(file))
    }

    /// The name under which this process can open it.
    pub(super) fn name(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Sends the content to standard output.
    ///
    /// # Errors
    /// It cannot be read, or standard output takes no more.
    pub(super) fn send(&self) -> Result<()> {
        let failed = |e: std::io::Error| anyhow!("-: {}", reason(&e));
        (&self.0).seek(SeekFrom::Start(0)).map_err(failed)?;
        let (mut buffer, mut out) = (vec![0; PIECE_BYTES], std::io::stdout().lock());
        loop {
            let n = (&self.0).read(&mut buffer).map_err(failed)?;
            if n == 0 {
                return out.flush().map_err(failed);
            }
            out.write_all(&buffer[..n]).map_err(failed)?;
        }
    }
}

/// Standard input, under a name that can be opened. What has to be kept lives as long as this.
pub(super) struct Input {
    pub(super) name: String,
    _kept: Option<Nameless>,
}

impl Input {
    /// Standard input as it is, or kept.
    ///
    /// # Errors
    /// It is a terminal, it cannot be read, or there is no room for it.
    pub(super) fn take(cx: &Context) -> Result<Self> {
        if std::io::stdin().is_terminal() {
            bail!("'-' is standard input, which is a terminal: no image comes from there");
        }
        if !is_pipe() {
            return Ok(Self { name: "/proc/self/fd/0".to_owned(), _kept: None });
        }
        let kept = Nameless::new()?;
        cx.report(format!(
            "note: standard input cannot be read out of order; it is kept in {} while this runs",
            std::env::temp_dir().display()
        ));
        let failed = |e: std::io::Error| anyhow!("standard input cannot be kept: {}", reason(&e));
        let (mut buffer, mut stdin) = (vec![0; PIECE_BYTES], std::io::stdin().lock());
        loop {
            let n = stdin.read(&mut buffer).map_err(failed)?;
            if n == 0 {
                return Ok(Self { name: kept.name(), _kept: Some(kept) });
            }
            (&kept.0).write_all(&buffer[..n]).map_err(failed)?;
            if cowbell_host::signal::is_interrupted() {
                return Err(super::Interrupted.into());
            }
        }
    }
}

/// Whether standard input can only be read in order.
pub(super) fn is_pipe() -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata("/proc/self/fd/0").map(|meta| meta.file_type());
    !kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device())
}

/// Refuses what would be mixed into an image on standard output, or nobody could use.
///
/// # Errors
/// Says what.
pub(super) fn check_output(prints: bool) -> Result<()> {
    if std::io::stdout().is_terminal() {
        bail!("'-' is standard output, which is a terminal: an image is of no use there");
    }
    if prints {
        bail!("the image goes to standard output, where nothing else can be printed (--progress=json can)");
    }
    Ok(())
}

/// A target that takes its bytes in order, as an image in use.
pub(super) fn image(node: Arc<dyn cowbell_block::Node>) -> Image {
    Image {
        root: Root::new(node),
        name: DASH.to_owned(),
        write_through: false,
        cache: CacheMode::UNSAFE,
        probed_raw: false,
        node_name: None,
    }
}
