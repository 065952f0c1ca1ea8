//! Making new images: which options there are, what the message says, and names that are not final yet.

use std::fmt::Write;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::create::{CreateArgs, CreateOption, Origin, parse_create_options};
use cowbell_block::naming::{has_protocol, storage_tree};
use cowbell_block::options::OptionTree;
use cowbell_block::registry::{Driver, RAW};
use cowbell_block::unfinished::{self, Mark, UnfinishedNode};
use cowbell_block::{EdgeKind, Root};
use serde_json::Value;

use crate::context::Context;
use crate::face::Face;
use crate::open::{Image, Unfinished, reason};
use crate::size::reworded;
use cowbell_host::{name_of, path_of};

/// A format, and what a new image of it can be told.
pub(crate) struct Format {
    pub(crate) driver: Arc<dyn Driver>,
    /// The format's options, then those of the protocol; the first of a name counts.
    known: Vec<CreateOption>,
    has_protocol: bool,
}

impl Format {
    /// The format `name`, for a file called `filename` if that is known already.
    ///
    /// # Errors
    /// There is no such format, or it cannot create.
    pub(crate) fn find(cx: &Context, name: &str, filename: Option<&str>) -> Result<Self> {
        let registry = cx.registry();
        let Some(driver) = registry.driver(name).cloned() else { bail!("Unknown file format '{name}'") };
        if driver.create_options().is_empty() {
            bail!("Format driver '{name}' does not support image creation");
        }
        let mut known = driver.create_options().to_vec();
        known.retain(|option| option.origin == Origin::Reference || cx.face == Face::Cowbell);
        if let Some(filename) = filename {
            let tree = storage_tree(&registry, filename)?;
            let protocol = tree.get("driver").and_then(Value::as_str).unwrap_or_default();
            let options = registry.driver(protocol).map(|p| p.create_options()).unwrap_or_default();
            if options.is_empty() {
                bail!("Protocol driver '{protocol}' does not support image creation");
            }
            for option in options {
                if !known.iter().any(|own| own.name == option.name) {
                    known.push(*option);
                }
            }
        }
        Ok(Self { driver, known, has_protocol: filename.is_some() })
    }

    /// The `-o` values as typed options.
    ///
    /// # Errors
    /// The first option that is unknown or has a bad value.
    pub(crate) fn options<'a>(&self, lists: impl Iterator<Item = &'a str>) -> Result<OptionTree> {
        let mut tree = OptionTree::new();
        for list in lists {
            parse_create_options(list, &self.known, &mut tree).map_err(|e| reworded(e.into()))?;
        }
        Ok(tree)
    }

    /// Whether the format knows an option of this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.known.iter().any(|option| option.name == name)
    }

    /// What `-o help` prints.
    pub(crate) fn help(&self) -> String {
        let mut known = self.known.clone();
        known.sort_unstable_by_key(|option| option.name);
        let mut out = match self.has_protocol {
            true => "Supported options:\n".to_owned(),
            false => format!("Supported {} options:\n", self.driver.name()),
        };
        for option in known {
            let name = format!("{}=<{}>", option.name, option.kind.name());
            let _ = writeln!(out, "  {name:<22} - {}", option.help);
        }
        if !self.has_protocol {
            out.push_str(
                "\nThe protocol level may support further options.\n\
                 Specify the target filename to include those options.\n",
            );
        }
        out
    }

    /// The line that `create` prints first: the options that have a value, in the format's order.
    pub(crate) fn message(&self, filename: &str, options: &OptionTree) -> String {
        let mut out = format!("Formatting '{filename}', fmt={}", self.driver.name());
        for option in &self.known {
            match (options.get(option.name), option.default) {
                (Some(Value::Bool(on)), _) => {
                    let _ = write!(out, " {}={}", option.name, if *on { "on" } else { "off" });
                }
                (Some(Value::String(text)), _) => {
                    let _ = write!(out, " {}={}", option.name, text.replace(',', ",,"));
                }
                (Some(value), _) => {
                    // The reference shows numbers with a sign, whatever they are.
                    let number = value.as_u64().map(u64::cast_signed);
                    let _ = match number {
                        Some(number) => write!(out, " {}={number}", option.name),
                        None => write!(out, " {}={value}", option.name),
                    };
                }
                (None, Some(default)) => {
                    let _ = write!(out, " {}={default}", option.name);
                }
                (None, None) => {}
            }
        }
        out.push('\n');
        out
    }

    /// Makes the image.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) async fn create(
        &self,
        cx: &Context,
        filename: &str,
        options: OptionTree,
        mark: Option<&Mark>,
    ) -> cowbell_block::Result<()> {
        let mut context = cx.open_context().writable();
        context.mark = mark.cloned();
        let args = CreateArgs { filename: filename.to_owned(), options };
        self.driver.create(args, context).await
    }
}

/// How sizes are written, as the reference explains it.
pub(crate) const SIZE_HINT: &str =
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.";

/// The name under which a target is filled.
///
/// A new file gets its own name only when it is complete: whatever ends this program before leaves nothing
/// that could be taken for the finished image. A file that is there already, a device, or a name with a protocol
/// is filled in place, since links, owners and locks hang on it; a [`Mark`] in its place of recognition says until
/// the end that it is incomplete.
///
/// The other name is one that nobody had: a file of that name may be somebody's, even the source.
pub(crate) struct Staged {
    /// The name to create and open.
    pub(crate) name: String,
    rename_to: Option<PathBuf>,
    guard: Option<Unfinished>,
    /// What tells that a target filled in place is incomplete.
    pub(crate) mark: Option<Mark>,
    /// The names of the secrets that the new image is opened with.
    pub(crate) key_secrets: OptionTree,
}

/// What the name of an unfinished file ends with.
const SUFFIX: &str = ".incomplete";
/// Longest name of a file, in bytes: the kernel's limit.
const NAME_BYTES_MAX: usize = 255;
/// Names that are tried before giving up: so many unfinished files of one name are somebody's trap.
const ATTEMPTS: u32 = 1000;
/// Symbolic links followed before giving up: the kernel's limit.
const LINKS_MAX: usize = 40;

impl Staged {
    /// Decides about `name`, and takes the name to fill it under.
    ///
    /// # Errors
    /// Every name is taken. Anything else is left to the creation itself, which knows how to say it.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let Some(path) = fresh_path(name) else { return Ok(Self::in_place(name)) };
        for attempt in 1..=ATTEMPTS {
            let Some(staged) = staged_path(&path, attempt) else { break };
            // Taken here and now, and never through a link that was put there for us.
            let taken = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(NEW_FILE)
                .open(path_of(&staged));
            match taken {
                Ok(_) => {
                    let guard = Some(Unfinished::new(&staged));
                    return Ok(Self {
                        name: staged,
                        rename_to: Some(path),
                        guard,
                        mark: None,
                        key_secrets: OptionTree::new(),
                    });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(_) => return Ok(Self::in_place(name)),
            }
        }
        bail!("no name is free for the unfinished '{name}'");
    }

    /// `name` exists, and is made anew where it is.
    fn in_place(name: &str) -> Self {
        let mark = is_kept(name).then(|| Mark::new(unfinished::SECTOR_BYTES));
        Self { name: name.to_owned(), rename_to: None, guard: None, mark, key_secrets: OptionTree::new() }
    }

    /// `name` is an image that is written to as it is; see [`mark_existing`].
    pub(crate) fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rename_to: None,
            guard: None,
            mark: None,
            key_secrets: OptionTree::new(),
        }
    }

    /// The target exists now, and is ours.
    pub(crate) fn created(&mut self) {
        if self.guard.is_none() && is_regular(&self.name) && !has_protocol(&self.name) {
            self.guard = Some(Unfinished::new(&self.name));
        }
    }

    /// Whether giving up removes the target.
    pub(crate) fn is_removable(&self) -> bool {
        self.guard.is_some()
    }

    /// A message with the name that the user knows.
    pub(crate) fn reword(&self, message: &str) -> String {
        match &self.rename_to {
            Some(path) => message.replace(&self.name, &name_of(path)),
            None => message.to_owned(),
        }
    }

    /// The target is complete.
    ///
    /// # Errors
    /// It cannot be renamed; it is removed then.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some(path) = &self.rename_to {
            rename(&self.name, path).map_err(|e| {
                anyhow!("Could not rename '{}' to '{}': {}", self.name, path.display(), reason(&e))
            })?;
        }
        if let Some(guard) = self.guard.take() {
            guard.keep();
        }
        Ok(())
    }
}

/// Permissions of a new file before the umask: the reference's.
const NEW_FILE: u32 = 0o644;

/// Whether what is written there is still there when this program ends.
fn is_kept(name: &str) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path_of(name)).map(|meta| meta.file_type());
    kind.map_or_else(|_| has_protocol(name), |kind| kind.is_file() || kind.is_block_device())
}

/// Puts an image that is open, and about to be overwritten in part or as a whole, under a mark: from the first
/// change on nobody recognises it until the mark is lifted.
///
/// A format loses its magic, since the rest of its header describes what may be worth saving; a disk loses its
/// beginning.
pub(crate) fn mark_existing(image: &mut Image) -> Mark {
    let mut node = image.node();
    let mut above = None;
    loop {
        let below = node.edges().into_iter().find(|edge| edge.role == "file" && node.driver() != RAW);
        match below {
            Some(edge) if edge.kind == EdgeKind::Filtered => {
                node = edge.child.node();
                above = Some(edge.child);
            }
            Some(edge) => {
                let mark = Mark::new(unfinished::MAGIC_BYTES);
                let marked = UnfinishedNode::new(edge.child.node(), mark.clone());
                edge.child.replace(Arc::new(marked));
                return mark;
            }
            None => {
                let mark = Mark::new(unfinished::DISK_BYTES.min(node.len()));
                let marked = Arc::new(UnfinishedNode::new(node, mark.clone()));
                match above {
                    Some(edge) => drop(edge.replace(marked)),
                    None => image.root = Root::new(marked),
                }
                return mark;
            }
        }
    }
}

fn is_regular(name: &str) -> bool {
    std::fs::symlink_metadata(path_of(name)).is_ok_and(|meta| meta.is_file())
}

/// The path of a file that does not exist yet: `name`, or where the symbolic link of that name leads.
fn fresh_path(name: &str) -> Option<PathBuf> {
    if has_protocol(name) {
        return None;
    }
    let mut path = path_of(name);
    for _ in 0..LINKS_MAX {
        match std::fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return path.file_name().is_some().then_some(path),
            Ok(meta) if meta.is_symlink() => {
                let target = std::fs::read_link(&path).ok()?;
                // `/proc/self/fd/1` and its like only look like links.
                if std::fs::metadata(&path).is_ok() {
                    return None;
                }
                path.pop();
                path.push(target);
            }
            _ => return None,
        }
    }
    None
}

/// Where `path` is filled, at the `attempt`-th try. `None` where there is no such name, or it would be a protocol's.
fn staged_path(path: &Path, attempt: u32) -> Option<String> {
    let suffix = if attempt == 1 { SUFFIX.to_owned() } else { format!("{SUFFIX}-{attempt}") };
    let mut name = name_of(path.file_name()?);
    while name.len() + suffix.len() > NAME_BYTES_MAX {
        name.pop();
    }
    let staged = name_of(path.with_file_name(path_of(&format!("{name}{suffix}"))));
    (!has_protocol(&staged)).then_some(staged)
}

/// Renames, and takes no other file's place where the file system can tell.
fn rename(from: &str, to: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let from = path_of(from);
    match renameat_with(CWD, &from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => std::fs::rename(from, to),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_names_are_near_and_fit() {
        let staged = |name: &str, attempt| staged_path(Path::new(name), attempt);
        assert_eq!(staged("a.raw", 1).as_deref(), Some("a.raw.incomplete"));
        assert_eq!(staged("d/a.raw", 2).as_deref(), Some("d/a.raw.incomplete-2"));
        let long = staged(&format!("d/{}é", "x".repeat(253)), 1).expect("a name");
        assert_eq!(long, format!("d/{}.incomplete", "x".repeat(244)));
        assert_eq!(staged("..", 1), None);
    }
}
