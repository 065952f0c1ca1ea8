//! The differences as an image on top of the first one.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use cowbell_block::naming::has_protocol;
use cowbell_block::node::Access;
use cowbell_block::options::{CacheMode, OptionTree};
use cowbell_host::{name_of, path_of};
use cowbell_jobs::diff::{Diff, Kind, Overlay, Written};

use super::super::target::{Format, Staged};
use super::super::{Interrupted, job_failure};
use super::report::Report;
use super::{Opened, Stop, Walk, reported};
use crate::context::Context;
use crate::flags::{Args, img as flags, look};
use crate::meter::Meter;
use crate::open::{How, open};

/// The overlay that the user wants.
pub(super) struct Target<'a> {
    name: &'a str,
    format: &'a str,
    /// The image below it, as the user named it.
    below: &'a str,
}

impl<'a> Target<'a> {
    pub fn new(args: &'a Args, name: &'a str, below: &'a str) -> Self {
        Self { name, format: args.value(&look::OVERLAY_FORMAT).unwrap_or("qcow2"), below }
    }

    /// Fills the overlay with what differs, compares it with the second image, and gives it its name.
    pub async fn complete(
        &self,
        cx: &Context,
        (a, b): (&Opened, &Opened),
        staged: Staged,
        walk: &mut Walk<'_>,
        report: &mut Report,
        meter: &Meter,
    ) -> std::result::Result<Written, Stop> {
        let filled = async {
            let written = self.fill(cx, a, b, &staged, walk, report).await?;
            if let Some(mark) = &staged.mark {
                mark.complete();
            }
            self.verify(cx, (a, b), &staged, meter).await?;
            Ok(written)
        };
        match filled.await {
            Ok(written) => {
                staged.finish()?;
                meter.complete();
                Ok(written)
            }
            Err(stop) => {
                if let Stop::Other(error) = &stop {
                    cx.report(staged.reword(&error.to_string()));
                }
                cx.report(match staged.is_removable() {
                    true => format!("the unfinished output '{}' is removed", self.name),
                    false => format!("the output '{}' is incomplete", self.name),
                });
                Err(match stop {
                    Stop::Other(_) => reported(),
                    failure => failure,
                })
            }
        }
    }

    /// Makes the empty overlay.
    pub async fn create(&self, cx: &Context, args: &Args, a: &Opened, b: &Opened) -> Result<Staged> {
        let format = Format::find(cx, self.format, Some(self.name))?;
        let mut options = format.options(args.values(&flags::OPTIONS))?;
        if !format.knows("backing_file") {
            bail!("Backing file not supported for file format '{}'", self.format);
        }
        if let Some(key) =
            ["backing_file", "backing_fmt", "size"].iter().find(|key| options.contains_key(**key))
        {
            bail!("-o {key} is decided by the images that are compared");
        }
        if let Some(key) = options.keys().find(|key| key.starts_with("encrypt") || *key == "data_file") {
            bail!("-o {key}: an overlay of differences is a plain image; convert it afterwards");
        }
        options.insert("size".into(), b.image.node().len().into());
        options.insert("backing_file".into(), self.name_below()?.into());
        options.insert("backing_fmt".into(), a.image.node().driver().into());
        let mut staged = Staged::new(self.name)?;
        let made = format.create(cx, &staged.name, options, staged.mark.as_ref()).await;
        made.map_err(|e| anyhow!("{}: {}", self.name, staged.reword(&e.to_string())))?;
        staged.created();
        Ok(staged)
    }

    /// The first image as the overlay names it: from the overlay's directory, or from the root.
    fn name_below(&self) -> Result<String> {
        if has_protocol(self.below) || has_protocol(self.name) {
            return Ok(self.below.to_owned());
        }
        let path = path_of(self.below);
        let real = std::fs::canonicalize(&path)
            .map_err(|e| anyhow!("Could not resolve '{}': {}", self.below, crate::open::reason(&e)))?;
        match path.file_name() {
            Some(name) if self.is_beside() => Ok(name_of(name)),
            _ => Ok(name_of(real)),
        }
    }

    /// How the overlay is opened. An image below it in another directory was named by the user, and is not judged.
    fn how<'s>(&'s self, a: &Opened, staged: &'s Staged) -> How<'s> {
        let mut more = OptionTree::new();
        if !self.is_beside() && !has_protocol(self.below) {
            more.insert("backing.driver".into(), a.image.node().driver().into());
            more.insert("backing.file.driver".into(), "file".into());
            more.insert("backing.file.filename".into(), self.below.into());
        }
        How { more, side_by_side: 3, ..How::reading(&staged.name, Some(self.format)) }
    }

    /// Whether both are in one directory.
    fn is_beside(&self) -> bool {
        let parent = |name: &str| {
            let path = path_of(name);
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            std::fs::canonicalize(parent.unwrap_or(Path::new("."))).ok()
        };
        parent(self.name).is_some_and(|dir| parent(self.below).as_ref() == Some(&dir))
    }

    /// Writes what differs.
    async fn fill(
        &self,
        cx: &Context,
        a: &Opened,
        b: &Opened,
        staged: &Staged,
        walk: &mut Walk<'_>,
        report: &mut Report,
    ) -> std::result::Result<Written, Stop> {
        let how = How {
            access: Access::ReadWrite,
            cache: CacheMode::WRITEBACK,
            mark: staged.mark.clone(),
            ..self.how(a, staged)
        };
        let target = open(cx, &how).await?;
        let below = a.image.node().len();
        let mut overlay = Overlay::new(&b.image.root, &target.root);
        let stored = async {
            while let Some(next) = walk.next().await? {
                // What is only below is cut off by the length; behind the end of what is below there are zeroes.
                let needs_nothing =
                    next.kind == Some(Kind::OnlyInA) || next.start >= below && next.reads_zero;
                if !needs_nothing {
                    overlay.put(next.start, next.len).await.map_err(|e| Stop::Other(job_failure(cx, &e)))?;
                }
                report.take(&next);
            }
            overlay.finish().await.map_err(|e| Stop::Other(job_failure(cx, &e)))
        };
        let stored = stored.await;
        let closed = target.close().await;
        let stored = stored?;
        closed.map_err(anyhow::Error::new)?;
        Ok(stored)
    }

    /// Opens the overlay as anybody would, and compares it with the second image.
    async fn verify(
        &self,
        cx: &Context,
        (a, b): (&Opened, &Opened),
        staged: &Staged,
        meter: &Meter,
    ) -> Result<()> {
        let overlay = open(cx, &self.how(a, staged)).await?;
        let mut diff = Diff::new(&overlay.root, &b.image.root, Vec::new(), meter);
        let first = diff.next().await;
        overlay.close().await?;
        match first {
            Ok(None) => Ok(()),
            Ok(Some(difference)) => bail!(
                "the overlay does not read as the second image at offset {}: what was compared changed meanwhile, or \
                 the bitmap does not know all that changed since the first image",
                difference.start
            ),
            Err(failure) if matches!(failure.error, cowbell_jobs::Error::Cancelled) => {
                Err(Interrupted.into())
            }
            Err(failure) => bail!("the overlay cannot be compared: {}", job_failure(cx, &failure.error)),
        }
    }
}
