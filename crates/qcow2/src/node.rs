//! An open image as a node of the graph: each request goes to the module that acts on it.

use std::any::Any;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::child::{EdgeKind, NamedEdge};
use cowbell_block::modes::Modes;
use cowbell_block::naming::{options_of, write_json};
use cowbell_block::node::NoSuchBitmap;
use cowbell_block::options::OptionTree;
use cowbell_block::range_lock::LockMode;
use cowbell_block::{
    Access, Amend, BoxFuture, Bufs, CheckReport, Child, Completion, ErrorKind, Fix, ImageInfo, Limits, Node,
    Op, Operation, Request, Result, SnapshotChange, SnapshotName,
};
use cowbell_luks::SECTOR;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::header::Header;
use crate::open::{self, OpenOptions, SkipRepair};
use crate::sharing::{self, Sharing};
use crate::{
    DRIVER, amend, check, copy, describe, driver, read, resize, runtime, snapshot, told, vmstate, zero,
};

/// An open qcow2 image.
pub struct Qcow2 {
    pub(crate) engine: Arc<Engine>,
    modes: Modes,
}

impl Qcow2 {
    /// Opens the image in `file`, over `backing` if it has a backing file.
    ///
    /// A writable open of an image that was not shut down cleanly repairs its refcounts first.
    ///
    /// # Errors
    /// The rule of the format that the image breaks, a feature that is not there yet, or the file's error.
    pub async fn open(
        file: Arc<dyn Node>,
        backing: Option<Arc<dyn Node>>,
        options: OpenOptions,
    ) -> Result<Arc<Self>> {
        let modes = options.modes;
        let engine = open::open_engine(Child::new(file), backing.map(Child::new), options).await?;
        Ok(Arc::new(Self { engine, modes }))
    }

    /// Reads and checks only the header: what an image says about itself.
    ///
    /// # Errors
    /// The rule of the format that the header breaks, or the file's error.
    pub async fn read_header(file: &Child) -> Result<Header> {
        open::read_header(file).await
    }

    /// What the disk and each snapshot hold of the image file: alone, and together with others. Looks at all tables.
    ///
    /// # Errors
    /// The file's; or [`ErrorKind::Corrupt`](cowbell_block::ErrorKind::Corrupt) when L1 tables lie upon each other.
    pub async fn sharing(&self) -> Result<Sharing> {
        self.engine.orphans.beside(sharing::sharing(&self.engine)).await
    }

    /// Whether nothing is under way and nothing abandoned: for tests of quiescence.
    pub fn is_quiet(&self) -> bool {
        self.engine.is_quiet()
    }
}

impl Qcow2 {
    /// Stores the bitmaps before a change of the disk: what is noted of them takes too much memory.
    fn submit_after_storing(&self, request: Request) -> Op {
        let (engine, modes) = (self.engine.clone(), self.modes);
        let whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive);
        self.engine.keep(async move {
            let stored = {
                let _whole = whole.await;
                engine.store_bitmaps().await
            };
            match stored {
                Ok(()) => Self { engine, modes }.submit(request).finish().await,
                Err(e) => Completion::failed(request.bufs, e),
            }
        })
    }

    fn submit_flush(&self, request: Request) -> Op {
        let engine = &self.engine;
        if let Err(e) = engine.check_usable() {
            return Op::failed(request.bufs, e);
        }
        if !engine.writable.load(Ordering::Relaxed) {
            return Op::done(request.bufs);
        }
        let worker = engine.clone();
        engine.keep(async move {
            match worker.flush().await {
                Ok(()) => Completion::done(Bufs::none()),
                Err(e) => Completion::failed(Bufs::none(), e),
            }
        })
    }
}

impl Node for Qcow2 {
    fn submit(&self, mut request: Request) -> Op {
        let engine = &self.engine;
        if request.op.is_mutation() && engine.bitmaps.is_crowded() {
            return self.submit_after_storing(request);
        }
        if !self.modes.is_plain() {
            request = match self.modes.shape(request) {
                ControlFlow::Continue(request) => request,
                ControlFlow::Break(op) => return op,
            };
        }
        match request.op {
            Operation::Read => read::submit(engine, request),
            Operation::Write => told::write(engine, request),
            Operation::WriteZeroes => told::write_zeroes(engine, request),
            Operation::Discard => zero::submit_discard(engine, request),
            Operation::Status => read::submit_status(engine, &request),
            Operation::Flush => self.submit_flush(request),
            Operation::Truncate(preallocation) => resize::submit(engine, &request, preallocation),
            Operation::CopyFrom { .. } => copy::submit(engine, request),
            Operation::VmStateRead => vmstate::submit_read(engine, request),
            Operation::VmStateWrite => vmstate::submit_write(engine, request),
        }
    }

    fn dirty_areas(&self, bitmap: String) -> BoxFuture<Result<Vec<Range<u64>>>> {
        let image = Self { engine: self.engine.clone(), modes: self.modes };
        Box::pin(async move {
            let mut bits = image.read_bitmap(&bitmap).await.map_err(|e| match e.kind() {
                ErrorKind::NotFound => NoSuchBitmap(bitmap.clone()).into(),
                _ => e,
            })?;
            let (mut areas, mut at) = (Vec::new(), 0);
            while let Some(area) = bits.next_dirty(at).await? {
                at = area.end;
                areas.push(area);
            }
            Ok(areas)
        })
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn len(&self) -> u64 {
        self.engine.state.lock().header.size
    }

    fn limits(&self) -> Limits {
        let grain = self.engine.geometry.cluster_size();
        let request_alignment = if self.engine.is_encrypted() { SECTOR as u32 } else { 1 };
        Limits { request_alignment, discard_alignment: grain, preferred_write: grain, ..Limits::default() }
    }

    fn is_read_only(&self) -> bool {
        !self.engine.writable.load(Ordering::Relaxed)
    }

    fn compresses(&self) -> bool {
        !self.engine.is_encrypted()
    }

    fn starts_as_zero(&self) -> bool {
        self.engine.backing.is_none()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        let edge = |role, kind, child: &Child| NamedEdge { role, kind, child: child.clone() };
        let mut edges = vec![edge("file", EdgeKind::Storage, &self.engine.file)];
        edges.extend(self.engine.data_file.as_ref().map(|child| edge("data-file", EdgeKind::Storage, child)));
        edges.extend(self.engine.backing.as_ref().map(|child| edge("backing", EdgeKind::Backing, child)));
        edges
    }

    fn primary(&self) -> Option<Arc<dyn Node>> {
        Some(self.engine.file.node())
    }

    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.engine.backing.as_ref().map(Child::node)
    }

    fn filename(&self) -> String {
        let file = self.engine.file.node();
        let key_secret = self.engine.around.crypto.as_ref().and_then(|crypto| crypto.key_secret.as_ref());
        let name = file.filename();
        // What is no plain name of the file is no name of the image in it.
        if key_secret.is_none() && !name.starts_with("json:") {
            return name;
        }
        // In the reference's order and form.
        let mut tree = OptionTree::new();
        if let Some(id) = key_secret {
            tree.insert("encrypt.key-secret".to_owned(), json!(id));
        }
        tree.insert("driver".to_owned(), json!(DRIVER));
        tree.insert("file".to_owned(), options_of(&*file));
        format!("json:{}", write_json(&Value::Object(tree)))
    }

    /// The engine's: it tells more than the node does.
    fn identity(&self) -> u64 {
        Arc::as_ptr(&self.engine).addr() as u64
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let engine = self.engine.clone();
        Box::pin(async move { describe::describe(&engine).await })
    }

    fn check(&self, fix: Fix) -> BoxFuture<Result<CheckReport>> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.orphans.beside(check::run(&engine, fix)).await })
    }

    fn make_empty(&self) -> BoxFuture<Result<()>> {
        let op = resize::submit_empty(&self.engine);
        Box::pin(async move { op.finish().await.result.map(drop) })
    }

    fn change_backing(&self, name: Option<String>, format: Option<String>) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.orphans.beside(amend::change_backing(&engine, name, format)).await })
    }

    fn amend(&self, mut options: OptionTree, how: Amend) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let worker = engine.clone();
            let work = async move {
                if let Some(keys) = driver::key_amendment(&mut options)? {
                    worker.amend_keys(&keys, &how.secrets, how.force).await?;
                }
                if options.is_empty() {
                    return Ok(());
                }
                let wanted = driver::amendment(options, &worker.state.lock().header)?;
                amend::amend(&worker, wanted).await
            };
            engine.orphans.beside(work).await
        })
    }

    fn change_snapshots(&self, change: SnapshotChange) -> BoxFuture<Result<()>> {
        let worker = self.engine.clone();
        // Kept: half of it must not stay undone when the caller loses interest.
        let op = self.engine.keep(async move {
            match snapshot::change(&worker, change).await {
                Ok(()) => Completion::done(Bufs::none()),
                Err(e) => Completion::failed(Bufs::none(), e),
            }
        });
        Box::pin(async move { op.finish().await.result.map(drop) })
    }

    fn at_snapshot(&self, which: SnapshotName) -> BoxFuture<Result<Arc<dyn Node>>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let engine = engine.orphans.beside(snapshot::open_view(&engine, &which)).await?;
            Ok(Arc::new(Self { engine, modes: Modes::default() }) as Arc<dyn Node>)
        })
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive);
            let _whole = engine.orphans.beside(whole).await;
            match access {
                Access::ReadOnly => engine.stop_writing().await,
                Access::ReadWrite => engine.start_writing(SkipRepair(false)).await,
            }
        })
    }

    fn reconfigure(&self, options: OptionTree) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.orphans.beside(runtime::reconfigure(&engine, options)).await })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move { engine.orphans.beside(open::close(&engine)).await })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
