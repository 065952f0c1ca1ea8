//! The driver as the registry knows it: options in, nodes and images out.

use std::sync::Arc;

use cowbell_block::context::{ChildKind, OpenContext};
use cowbell_block::create::{CreateArgs, CreateOption, OptionKind};
use cowbell_block::modes::Modes;
use cowbell_block::naming::resolve_relative;
use cowbell_block::options::{ChildRef, OptionTree, parse};
use cowbell_block::outside;
use cowbell_block::registry::{Driver, Role, Score};
use cowbell_block::{BoxFuture, Child, ImageName, Node, Result, StoredBacking};
use serde::Deserialize;

use crate::DRIVER;
use crate::create::{CreateOptions, Parent, Subformat, create};
use crate::error::VpcError;
use crate::footer::COOKIE;
use crate::node::{Metadata, OpenOptions, SizeRule, Vpc};

/// Opens and makes virtual hard disks for a registry.
pub struct VpcDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuntimeOptions {
    #[serde(default)]
    file: ChildRef,
    #[serde(default)]
    backing: ChildRef,
    force_size_calc: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct CreationOptions {
    size: u64,
    subformat: Option<String>,
    force_size: bool,
    backing_file: Option<String>,
    backing_fmt: Option<String>,
}

/// In the order in which `create` shows them; `help` sorts.
const CREATE_OPTIONS: &[CreateOption] = &[
    CreateOption::new("size", OptionKind::Size, "Virtual disk size"),
    CreateOption::new(
        "subformat",
        OptionKind::Str,
        "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
    ),
    CreateOption::new(
        "force_size",
        OptionKind::Bool,
        "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based \
         calculation",
    ),
    CreateOption::new("backing_file", OptionKind::Str, "Parent of a differencing image").ours(),
    CreateOption::new("backing_fmt", OptionKind::Str, "Format of the parent: vpc").ours(),
];

impl Driver for VpcDriver {
    fn name(&self) -> &'static str {
        DRIVER
    }

    fn role(&self) -> Role {
        Role::Format
    }

    fn probe(&self, head: &[u8]) -> Score {
        // Fixed images have their footer at the end only, and are to be named.
        if head.starts_with(&COOKIE) { 100 } else { 0 }
    }

    fn supports_backing(&self) -> bool {
        true
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: RuntimeOptions = parse(DRIVER, Role::Format, tree)?;
            let size_rule = match &options.force_size_calc {
                None => SizeRule::Creator,
                Some(name) => SizeRule::from_name(name)?,
            };
            let file = cx.require_child("file", options.file, ChildKind::Storage).await?;
            let metadata = Metadata::read(&Child::new(file.clone()), size_rule).await?;
            let stored = metadata.parent_name().map(|name| StoredBacking { name, format: Some(DRIVER) });
            let parent = cx.open_backing(&*file, stored, options.backing).await?;
            let options = OpenOptions { access: cx.access, modes: Modes::of(&cx), size_rule };
            Ok(Arc::new(Vpc::open(file, metadata, parent, options).await?) as Arc<dyn Node>)
        })
    }

    fn create_options(&self) -> &'static [CreateOption] {
        CREATE_OPTIONS
    }

    fn create(&self, mut args: CreateArgs, cx: OpenContext) -> BoxFuture<Result<()>> {
        Box::pin(async move {
            let given = args.take_typed::<CreationOptions>(CREATE_OPTIONS)?;
            let outside = outside::required(&cx.outside)?;
            let options = resolve(given, &args.filename, &cx).await?;
            let filename = args.filename.clone();
            let storage = cx.create_storage(args).await?;
            let file = cx.open_storage(&filename).await?;
            let made = create(&Child::new(file.clone()), &options, &*outside).await;
            made.and(file.close().await)?;
            storage.keep();
            Ok(())
        })
    }
}

async fn resolve(given: CreationOptions, filename: &str, cx: &OpenContext) -> Result<CreateOptions> {
    let subformat = match given.subformat.as_deref() {
        None | Some("dynamic") => Subformat::Dynamic,
        Some("fixed") => Subformat::Fixed,
        Some(other) => return Err(VpcError::Subformat(other.to_owned()).into()),
    };
    let parent = match given.backing_file {
        None => None,
        Some(_) if given.subformat.is_some() => return Err(VpcError::SubformatWithParent.into()),
        Some(name) => Some(look_at_parent(name, given.backing_fmt, filename, cx).await?),
    };
    if let Some(parent) = &parent
        && parent.len != given.size
    {
        return Err(VpcError::ParentLength { parent: parent.len, size: given.size }.into());
    }
    Ok(CreateOptions { size: given.size, subformat, exact: given.force_size, parent })
}

/// What a new image has to know of its parent.
async fn look_at_parent(
    name: String,
    format: Option<String>,
    filename: &str,
    cx: &OpenContext,
) -> Result<Parent> {
    if let Some(format) = format.filter(|format| format != DRIVER) {
        return Err(VpcError::ParentFormat(format).into());
    }
    let mut reading = cx.clone();
    reading.access = cowbell_block::Access::ReadOnly;
    (reading.mark, reading.no_backing, reading.force_share) = (None, true, true);
    let full = ImageName::Text(resolve_relative(filename, &name));
    let node = reading.open_image(&full, Some(DRIVER)).await?.node;
    let found = node.as_any().downcast_ref::<Vpc>().map(|vpc| (*vpc.footer(), vpc.len()));
    node.close().await?;
    let (footer, len) = found.ok_or_else(|| VpcError::ParentFormat(node.driver().to_owned()))?;
    Ok(Parent { name, footer, len })
}
