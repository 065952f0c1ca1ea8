//! open and close, and the options that `io` itself shares with them.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::copy_on_read::CopyOnRead;
use cowbell_block::filter::FilterNode;
use cowbell_block::naming::split_option_list;
use cowbell_block::node::{Access, Node};
use cowbell_block::options::{AioMode, CacheMode, DiscardMode};
use cowbell_block::{Child, Error, ErrorKind, OptionTree, Root};
use cowbell_host::{Create, FileNode, FileOptions, Locking};
use serde_json::Value;

use super::requests::errno;
use super::session::Session;
use super::shell::{Done, Failed};
use crate::context::Context;
use crate::face::Face;
use crate::flags::io::{self as flags, IoCommand};
use crate::flags::{Args, img};
use crate::open::{CloseError, How, Image, open_bare, warn_probed_raw};
use crate::out::complain;

/// How images are opened, resolved from options.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    format: Option<String>,
    image_opts: bool,
    access: Access,
    force_share: bool,
    cache: CacheMode,
    discard: DiscardMode,
    aio: AioMode,
    snapshot: bool,
    copy_on_read: bool,
    /// Options of the image, beside its name.
    more: OptionTree,
}

impl Settings {
    /// The options of the program.
    ///
    /// # Errors
    /// A mode that does not exist.
    pub(super) fn of_program(args: &Args) -> Result<Self> {
        let mut settings = Self::common(args)?;
        settings.format = args.value(&flags::FORMAT).map(str::to_owned);
        settings.image_opts = args.has(&img::IMAGE_OPTS);
        if settings.image_opts && settings.format.is_some() {
            bail!("--image-opts and -f are mutually exclusive");
        }
        Ok(settings)
    }

    fn common(args: &Args) -> Result<Self> {
        // The tool exercises images: without a mode each write is durable when it is reported.
        let mut cache = CacheMode::WRITETHROUGH;
        if args.has(&flags::NOCACHE) {
            cache = CacheMode::NONE;
        }
        if let Some(name) = args.value(&flags::CACHE) {
            cache = crate::open::cache_mode("cache", name)?;
        }
        let discard = match args.value(&flags::DISCARD) {
            None => DiscardMode::Unmap,
            Some(name) => {
                DiscardMode::from_name(name).ok_or_else(|| anyhow!("Invalid discard option: {name}"))?
            }
        };
        let mut aio = if args.has(&flags::NATIVE_AIO) { AioMode::Native } else { AioMode::Auto };
        if let Some(name) = args.value(&flags::AIO) {
            aio = AioMode::from_name(name)
                .filter(|mode| *mode != AioMode::Auto)
                .ok_or_else(|| anyhow!("Invalid aio option: {name}"))?;
        }
        Ok(Self {
            format: None,
            image_opts: false,
            access: if args.has(&flags::READ_ONLY) { Access::ReadOnly } else { Access::ReadWrite },
            force_share: args.has(&img::FORCE_SHARE),
            cache,
            discard,
            aio,
            snapshot: args.has(&flags::SNAPSHOT),
            copy_on_read: args.has(&flags::COPY_ON_READ),
            more: OptionTree::new(),
        })
    }
}

impl Settings {
    /// Whether the node on top is one that the user did not name.
    pub(super) fn copies_on_read(&self) -> bool {
        self.copy_on_read
    }
}

/// Opens an image for the session.
///
/// # Errors
/// `can't open device NAME: REASON`.
pub(super) async fn open(cx: &Context, name: &str, settings: &Settings) -> Result<Image> {
    let how = How {
        image_opts: settings.image_opts,
        // Below a temporary overlay nothing is written.
        access: if settings.snapshot { Access::ReadOnly } else { settings.access },
        force_share: settings.force_share,
        cache: settings.cache,
        discard: settings.discard,
        aio: settings.aio,
        more: settings.more.clone(),
        ..How::reading(name, settings.format.as_deref())
    };
    let refused = |e: cowbell_block::Error| {
        let hint = crate::size::hint(&e);
        match settings.image_opts {
            true => anyhow!("can't open: {e}{hint}"),
            false => anyhow!("can't open device {name}: {e}{hint}"),
        }
    };
    let mut image = open_bare(cx, &how).await.map_err(refused)?;
    if how.access == Access::ReadWrite && image.node().is_read_only() {
        return Err(refused(Error::new(ErrorKind::ReadOnly, IsReadOnly)));
    }
    if settings.copy_on_read && settings.access == Access::ReadOnly {
        return Err(refused(Error::new(ErrorKind::PermissionDenied, NowhereToCopy)));
    }
    if settings.snapshot {
        let node = overlay(image.node()).await.map_err(refused)?;
        image.root = Root::new(node);
    } else if image.probed_raw && settings.access == Access::ReadWrite {
        warn_probed_raw(name);
    }
    if settings.copy_on_read {
        let copying = CopyOnRead::new(Child::new(image.node()), None).map_err(|e| refused(e.into()))?;
        image.root = Root::new(Arc::new(FilterNode::new(copying)));
    }
    Ok(image)
}

/// To be written to, but an option of the image itself says that it is not.
#[derive(Debug, thiserror::Error)]
#[error("Block node is read-only")]
struct IsReadOnly;

/// `-C` together with `-r`.
#[derive(Debug, thiserror::Error)]
#[error("Can't use copy-on-read on read-only device")]
struct NowhereToCopy;

/// A temporary overlay on `backing`. Its file has no name any more when this returns, so that nothing of it
/// is left, however the program ends.
pub async fn overlay(backing: Arc<dyn Node>) -> cowbell_block::Result<Arc<dyn Node>> {
    let path = std::env::temp_dir().join(format!("cowbell-overlay-{}", std::process::id()));
    let options = FileOptions {
        access: Access::ReadWrite,
        create: Create::New,
        locking: Locking::Off,
        // It ends with the program: durability would be for nobody.
        cache: CacheMode::UNSAFE,
        ..FileOptions::default()
    };
    let file: Arc<dyn Node> = FileNode::open(&path, &options)?;
    // A name that cannot be removed is left behind, and does no harm.
    let _ = std::fs::remove_file(&path);
    let size = backing.len();
    cowbell_qcow2::create(
        &Child::new(file.clone()),
        None,
        &cowbell_qcow2::CreateOptions { size, ..cowbell_qcow2::CreateOptions::default() },
    )
    .await?;
    let options =
        cowbell_qcow2::OpenOptions { access: Access::ReadWrite, ..cowbell_qcow2::OpenOptions::default() };
    Ok(cowbell_qcow2::Qcow2::open(file, Some(backing), options).await?)
}

/// The command `open`.
pub(super) async fn open_command(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let settings = match Settings::common(args) {
        Ok(settings) => settings,
        Err(e) => {
            session.cx.report(e);
            return Err(Failed);
        }
    };
    let options = args.value(&flags::OPEN_OPTIONS);
    if args.operands.is_empty() && options.is_none() {
        complain("bad argument count 0 to open, expected at least 1 arguments");
        return Err(Failed);
    }
    let name = match args.operands.as_slice() {
        [name] => Some(name.as_str()),
        [] if options.is_some() => None,
        _ => return session.bad_usage(command, "open"),
    };
    if session.image().is_some() {
        session.cx.report("file open already, try 'help close'");
        return Err(Failed);
    }
    let (name, settings) = match (name, options) {
        (Some(name), None) => (name, settings),
        (Some(name), Some(options)) => {
            let pairs = split_option_list(options).into_iter();
            let more = pairs.map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
            (name, Settings { more, ..settings })
        }
        (None, Some(options)) => (options, Settings { image_opts: true, ..settings }),
        (None, None) => return session.bad_usage(command, "open"),
    };
    match session.open(name, &settings).await {
        Ok(()) => Ok(()),
        Err(e) => {
            session.cx.report(e);
            Err(Failed)
        }
    }
}

/// The command `close`.
pub(super) async fn close(session: &mut Session<'_>) -> Done {
    let closed = session.close().await;
    tell_closed(session.cx, closed)
}

/// Tells why an image could not be closed as it should. Under the drop-in name the words and the status are the reference's,
/// which counts failed requests only.
pub(super) fn tell_closed(cx: &Context, closed: Result<(), CloseError>) -> Done {
    match (closed, cx.face) {
        (Ok(()), _) => Ok(()),
        (Err(e), Face::QemuIo) => {
            for cache in ["L2 table", "refcount block"] {
                cx.report(format_args!("Failed to flush the {cache} cache: {}", errno(&e.reason)));
            }
            Ok(())
        }
        (Err(e), _) => {
            cx.report(e);
            Err(Failed)
        }
    }
}
