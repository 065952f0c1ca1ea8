//! From an option tree to a node: finding the driver, probing, and handing the options over.

use std::sync::Arc;

use serde_json::Value;

use crate::buf::Buf;
use crate::child::{Child, EdgeKind};
use crate::context::{ChildKind, OpenContext};
use crate::error::Result;
use crate::naming::{self, ImageName, NamingError};
use crate::node::Node;
use crate::options::{ChildRef, CommonOptions, OptionTree};
use crate::registry::{Driver, PROBE_BYTES, RAW, Registry};
use crate::request::BoxFuture;

mod opening;

/// A node that was opened by a name or options.
#[derive(Clone)]
pub struct Opened {
    /// The node.
    pub node: Arc<dyn Node>,
    /// No format was given, and nothing but raw fits the content. Such a node refuses writes that would make its
    /// first sector look like another format; a tool that opened it for writing warns.
    pub probed_raw: bool,
    /// How its options name it, if they do.
    pub node_name: Option<String>,
}

/// Opens an image. Without `format` and without a driver in the options, the format is probed.
///
/// The node accepts writes if `cx` asks for them. Dropping the future abandons the opening; nodes opened until
/// then are dropped.
///
/// # Errors
/// The name or the options cannot be understood, or a node does not open.
pub async fn open_image(name: &ImageName, format: Option<&str>, cx: &OpenContext) -> Result<Opened> {
    open_image_with(name, format, OptionTree::new(), cx).await
}

/// [`open_image`] with `more` options for the image's node.
///
/// # Errors
/// As there.
pub async fn open_image_with(
    name: &ImageName,
    format: Option<&str>,
    more: OptionTree,
    cx: &OpenContext,
) -> Result<Opened> {
    let mut tree = naming::image_tree(&cx.registry, name, format)?;
    tree.extend(more);
    open_tree(tree, cx.clone()).await
}

/// Opens the node that `tree` describes.
pub(crate) fn open_tree(tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Opened>> {
    Box::pin(open(tree, cx))
}

async fn open(tree: OptionTree, mut cx: OpenContext) -> Result<Opened> {
    let mut tree = naming::nest(tree).map_err(NamingError::List)?;
    let common = CommonOptions::take(&mut tree)?;
    cx.apply(&common)?;
    if cx.trace.is_some() && cx.told_modes.is_none() {
        cx.told_modes = Some(opening::shared_modes(&cx));
    }
    let node_name = common.node_name;
    let graph = cx.graph.clone();
    let (driver, probed_raw) = match (common.driver, cx.kind()) {
        (Some(name), _) => (named(&cx.registry, &name)?, false),
        (None, ChildKind::Storage) if tree.contains_key("filename") => (named(&cx.registry, "file")?, false),
        (None, ChildKind::Image) if tree.contains_key("file") => {
            let file = match tree.shift_remove("file") {
                Some(Value::Object(options)) => ChildRef::Inline(options),
                Some(Value::String(name)) => ChildRef::Node(name),
                _ => return Err(NamingError::ChildMissing { role: "file".to_owned() }.into()),
            };
            let probing = cx.for_probing();
            let file = probing.open_child_as("file", EdgeKind::Filtered, file, ChildKind::Storage).await?;
            let file = file.ok_or_else(|| NamingError::ChildMissing { role: "file".to_owned() })?;
            let driver = probe(&cx.registry, &file).await?;
            let raw = driver.is_none();
            cx = cx.with_preopened(file);
            let driver = match driver {
                Some(driver) => driver,
                None => named(&cx.registry, RAW)?,
            };
            (driver, raw)
        }
        _ => return Err(NamingError::NothingToOpen.into()),
    };
    let told = opening::told(&cx, &driver);
    let node = driver.open(tree, cx.with_driver(&driver)).await?;
    if let Some(told) = told {
        told.tell(&*node);
    }
    if let (Some(name), Some(graph)) = (&node_name, graph) {
        graph.remember_name(name.clone(), &node)?;
    }
    Ok(Opened { node, probed_raw, node_name })
}

fn named(registry: &Registry, name: &str) -> Result<Arc<dyn Driver>> {
    let driver = registry.driver(name);
    Ok(driver.cloned().ok_or_else(|| NamingError::UnknownDriver(name.to_owned()))?)
}

/// The format that the content of `file` looks like; `None` is raw.
///
/// # Errors
/// The first bytes cannot be read.
pub async fn probe(registry: &Registry, file: &Arc<dyn Node>) -> Result<Option<Arc<dyn Driver>>> {
    let len = file.len().min(PROBE_BYTES as u64) as usize;
    let head = match len {
        0 => Buf::zeroed(0),
        len => Child::new(file.clone()).read(0, len).await?,
    };
    Ok(registry.driver_of_content(&head).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::node::Access;
    use crate::policy::Policy;
    use crate::request::Request;
    use crate::testing::{Files, now};

    fn open(cx: &OpenContext, name: &str, format: Option<&str>) -> Result<Opened> {
        now(open_image(&ImageName::from(name), format, cx))
    }

    fn open_list(cx: &OpenContext, list: &str) -> Result<Opened> {
        now(open_image(&ImageName::OptionList(list.to_owned()), None, cx))
    }

    fn text(result: Result<Opened>) -> String {
        result.map(|o| o.node.filename()).expect_err("must not open").to_string()
    }

    #[test]
    fn the_format_is_probed_and_raw_is_the_rest() {
        let files = Files::default();
        files.put("t", b"TOY:\n");
        files.put("r", b"anything");
        files.put("e", b"");
        let cx = files.context();
        let opened = open(&cx, "t", None).expect("toy");
        assert_eq!((opened.node.driver(), opened.probed_raw), ("toy", false));
        let opened = open(&cx, "r", None).expect("raw");
        assert_eq!((opened.node.driver(), opened.probed_raw, opened.node.len()), ("raw", true, 512));
        assert!(open(&cx, "e", None).expect("an empty file").probed_raw);
        let opened = open(&cx, "t", Some("raw")).expect("raw by name");
        assert_eq!((opened.node.driver(), opened.probed_raw), ("raw", false));
        assert_eq!(open(&cx, "t", Some("file")).expect("itself").node.driver(), "file");
    }

    #[test]
    fn a_probed_raw_node_stays_raw() {
        let files = Files::default();
        let mem = files.put("r", &[7; 2048]);
        let cx = files.context().writable();
        let node = open(&cx, "r", None).expect("raw").node;
        let child = Child::new(node);
        let error = now(child.write(0, Buf::copy_of(b"TOY:"))).expect_err("guarded");
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::PermissionDenied, "Operation not permitted".into())
        );
        now(child.write(0, Buf::copy_of(b"TOX:"))).expect("still raw");
        now(child.write(600, Buf::copy_of(b"TOY:"))).expect("elsewhere");
        assert_eq!((&mem.content()[..5], &mem.content()[600..604]), (&b"TOX:\x07"[..], &b"TOY:"[..]));
        let node = open(&cx, "r", Some("raw")).expect("raw by name").node;
        now(Child::new(node).write(0, Buf::copy_of(b"TOY:"))).expect("no guard");
    }

    #[test]
    fn options_say_what_to_open() {
        let files = Files::default();
        files.put("t", b"TOY:\n");
        let cx = files.context();
        for list in ["driver=toy,file.filename=t", "file.filename=t", "file.driver=file,file.filename=t"] {
            assert_eq!(open_list(&cx, list).expect(list).node.driver(), "toy", "{list}");
        }
        for (list, expect) in [
            ("driver=toy", "A block device must be specified for \"file\""),
            ("filename=t", "Must specify either driver or file"),
            ("driver=nix,file.filename=t", "Unknown driver 'nix'"),
            ("driver=toy,file.filename=t,foo=1", "Block format 'toy' does not support the option 'foo'"),
            ("driver=toy,file.filename=t,file.x=1", "Block protocol 'file' doesn't support the option 'x'"),
            ("driver=toy,file=t", "Cannot find device='t' nor node-name='t'"),
            ("driver=toy,file.filename=u", "Could not open 'u': No such file or directory"),
            ("t", "Cannot find device='t' nor node-name='t'"),
            ("driver=toy,file.filename=t,discard=x", "Invalid discard option"),
        ] {
            assert_eq!(text(open_list(&cx, list)), expect);
        }
    }

    #[test]
    fn common_options_override_the_context() {
        let files = Files::default();
        files.put("r", &[0; 512]);
        let cx = files.context().writable();
        let node = open_list(&cx, "driver=raw,file.filename=r,read-only=on").expect("read only").node;
        assert!(node.is_read_only() && node.primary().expect("file").is_read_only());
        let list = "driver=raw,file.filename=r,force-share=on";
        assert_eq!(text(open_list(&cx, list)), "force-share=on can only be used with read-only images");
        let list = "driver=raw,file.filename=r,detect-zeroes=unmap,discard=ignore";
        assert!(text(open_list(&cx, list)).starts_with("setting detect-zeroes to unmap"));
        let node = open_list(&cx, "driver=raw,file.filename=r,discard=ignore").expect("raw").node;
        now(Child::new(node).submit(Request::discard(0, 512)).finish()).result.expect("ignored");
    }

    #[test]
    fn backing_files_are_found_from_the_overlay() {
        let files = Files::default();
        files.put("d/top", b"TOY:mid\n");
        files.put("d/mid", b"TOY:../base\n");
        files.put("d/../base", b"raw");
        files.put("other", b"raw too");
        let cx = files.context().writable();
        let top = open(&cx, "d/top", None).expect("chain").node;
        let mid = top.backing().expect("mid");
        let base = mid.backing().expect("base");
        assert_eq!((mid.filename(), base.filename()), ("d/mid".into(), "d/../base".into()));
        assert!(!top.is_read_only() && mid.is_read_only() && base.is_read_only());
        let top = open_list(&cx, "file.filename=d/top,backing.file.filename=other").expect("given").node;
        assert_eq!(top.backing().expect("other").filename(), "other");
        let alone = open(&cx, r#"json:{"file":{"filename":"d/top"},"backing":null}"#, None);
        assert!(alone.expect("alone").node.backing().is_none());
        let mut cx = cx;
        cx.no_backing = true;
        assert!(open(&cx, "d/top", None).expect("alone").node.backing().is_none());
    }

    #[test]
    fn chains_end() {
        let files = Files::default();
        files.put("a", b"TOY:b\n");
        files.put("b", b"TOY:a\n");
        files.put("c", b"TOY:./c\n");
        files.put("m", b"TOY:missing\n");
        let cx = files.context();
        assert_eq!(text(open(&cx, "a", None)), "Backing file 'a' creates an infinite loop.");
        let missing = "Could not open backing file: Could not open 'missing': No such file or directory";
        let error = open(&cx, "m", None).map(|_| ()).expect_err("no base");
        assert_eq!((error.to_string().as_str(), error.errno()), (missing, 2));
        // Every link has another name: only the depth stops it.
        for i in 0..300 {
            files.put(&format!("n{i}"), format!("TOY:n{}\n", i + 1).as_bytes());
        }
        assert!(text(open(&cx, "n0", None)).ends_with("'n201' is more than 200 levels below the image"));
        assert!(text(open(&cx, "c", None)).contains("No such file"));
    }

    #[test]
    fn the_policy_stands_between_an_image_and_other_files() {
        let files = Files::default();
        files.put("d/in", b"TOY:base\n");
        files.put("d/out", b"TOY:../base\n");
        files.put("d/json", b"TOY:json:{\"driver\":\"null-co\"}\n");
        files.put("d/base", b"x");
        files.put("d/../base", b"x");
        let mut cx = files.context();
        assert!(open(&cx, "d/out", None).is_ok() && open(&cx, "d/json", None).is_ok());
        cx.policy = Policy::confine();
        assert!(open(&cx, "d/in", None).is_ok());
        for name in ["d/out", "d/json"] {
            let error = open(&cx, name, None).map(|_| ()).expect_err("confined");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
        let given = "file.filename=d/out,backing.file.filename=d/../base";
        assert!(open_list(&cx, given).is_ok(), "the user's own names are not judged");
        cx.policy = Policy::none();
        assert!(
            text(open(&cx, "d/in", None)).contains("--policy=confine or COWBELL_POLICY=confine allows it")
        );
        assert!(open_list(&cx, given).is_ok());
    }

    #[test]
    fn a_format_makes_its_file_first() {
        let files = Files::default();
        let cx = files.context();
        let raw = cx.registry.driver("raw").expect("built in").clone();
        now(raw.create(crate::create::CreateArgs::new("new").with("size", 5), cx.clone())).expect("created");
        assert!(files.get("new").is_some());
        let node = now(cx.open_storage("new")).expect("there");
        assert!(!node.is_read_only() && cx.access == Access::ReadOnly);
        let toy = cx.registry.driver("toy").expect("added").clone();
        let error = now(toy.create(crate::create::CreateArgs::new("x"), cx)).expect_err("cannot");
        assert_eq!(error.to_string(), "toy does not support image creation");
    }
}
