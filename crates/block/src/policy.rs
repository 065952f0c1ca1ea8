//! What an image may make us open besides itself.
//!
//! An image names other files: its backing file, its external data file. Whoever made the image chose those
//! names, and they may point at anything the user can read. The policy is a value passed to open, and one
//! decision: given the image and the name stored in it, which file to open, or a refusal. Names that the *user*
//! gives are never judged.
//!
//! Resolution here is by strings. Under `confine` the decision also says beneath which directory the name has to
//! stay ([`Allowed::beneath`]); the host opens it relative to that directory without following symbolic links,
//! because only the kernel can rule out a link that leads away.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};
use crate::naming::{directory_of, has_protocol, resolve_relative};

/// Deepest backing chain that is opened without a tighter policy.
pub const CHAIN_DEPTH_MAX: u32 = 200;
/// Deepest backing chain of images that are not trusted.
pub const CHAIN_DEPTH_MAX_CONFINED: u32 = 16;

/// What an image may make us open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which files.
    pub rule: Rule,
    /// Longest chain of backing files below an image.
    pub depth_max: u32,
}

/// Which files an image may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Anything, by any way of naming, as the reference tools do.
    Trust,
    /// Files in the directory of the image that the user named, or below it, by plain names.
    Confine,
    /// Nothing.
    None,
}

impl Rule {
    /// The name, as the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Confine => "confine",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What in an image refers to another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The file with what the image has not allocated.
    BackingFile,
    /// The file with the image's guest data.
    DataFile,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackingFile => "backing file",
            Self::DataFile => "data file",
        })
    }
}

/// A reference that may be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The name to open, resolved against the image's directory.
    pub name: String,
    /// The directory that the name must not lead out of, also not by symbolic links.
    pub beneath: Option<String>,
}

/// A reference that the policy does not follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy '{rule}' does not open {reference} '{name}' of '{image}': {reason} \
     (--policy={allowed_by} or COWBELL_POLICY={allowed_by} allows it)"
)]
pub struct Refusal {
    /// The rule that refused.
    pub rule: Rule,
    /// What it is for the image.
    pub reference: Reference,
    /// The name stored in the image.
    pub name: String,
    /// The image.
    pub image: String,
    /// Which condition it fails.
    pub reason: Reason,
    /// The rule that would let it pass.
    pub allowed_by: Rule,
}

/// Why a reference is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Rule `none`.
    #[error("it is another file")]
    AnyReference,
    /// A protocol, options, or bytes that no file name has.
    #[error("the name is not a plain file name")]
    NotPlain,
    /// It leads out of the directory.
    #[error("it lies outside of the image's directory")]
    Outside,
    /// The image itself has no place among files.
    #[error("the image's own directory is not known")]
    NoDirectory,
}

impl From<Refusal> for Error {
    fn from(e: Refusal) -> Self {
        Error::new(ErrorKind::PermissionDenied, e)
    }
}

impl Policy {
    /// Follows everything.
    pub const fn trust() -> Self {
        Self { rule: Rule::Trust, depth_max: CHAIN_DEPTH_MAX }
    }

    /// Follows plain names at or below the image's directory.
    pub const fn confine() -> Self {
        Self { rule: Rule::Confine, depth_max: CHAIN_DEPTH_MAX_CONFINED }
    }

    /// Follows nothing.
    pub const fn none() -> Self {
        Self { rule: Rule::None, depth_max: CHAIN_DEPTH_MAX_CONFINED }
    }

    /// Decides about the `name` stored in `image`.
    ///
    /// `root` is the directory that an outer image of the chain is confined to already, if there is one.
    ///
    /// # Errors
    /// The policy does not follow the name.
    pub fn decide(
        self,
        reference: Reference,
        image: &str,
        name: &str,
        root: Option<&str>,
    ) -> Result<Allowed, Refusal> {
        let refuse = |reason, allowed_by| Refusal {
            rule: self.rule,
            reference,
            name: name.to_owned(),
            image: image.to_owned(),
            reason,
            allowed_by,
        };
        match self.rule {
            Rule::Trust => Ok(Allowed { name: resolve_relative(image, name), beneath: None }),
            Rule::Confine => confine(image, name, root).map_err(|reason| refuse(reason, Rule::Trust)),
            Rule::None => {
                let allowed_by = match confine(image, name, root) {
                    Ok(_) => Rule::Confine,
                    Err(_) => Rule::Trust,
                };
                Err(refuse(Reason::AnyReference, allowed_by))
            }
        }
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;
    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        match name {
            "trust" => Ok(Self::trust()),
            "confine" => Ok(Self::confine()),
            "none" => Ok(Self::none()),
            _ => Err(UnknownPolicy { name: name.to_owned() }),
        }
    }
}

/// A policy that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy '{name}': trust, confine and none exist")]
pub struct UnknownPolicy {
    /// What was asked for.
    pub name: String,
}

fn confine(image: &str, name: &str, root: Option<&str>) -> Result<Allowed, Reason> {
    if name.is_empty() || has_protocol(name) || name.contains('\0') {
        return Err(Reason::NotPlain);
    }
    if has_protocol(image) {
        return Err(Reason::NoDirectory);
    }
    let root = root.unwrap_or_else(|| directory_of(image));
    let resolved = resolve_relative(image, name);
    if !is_beneath(&resolved, root) {
        return Err(Reason::Outside);
    }
    let beneath = if root.is_empty() { "." } else { root };
    Ok(Allowed { name: resolved, beneath: Some(beneath.to_owned()) })
}

/// Whether `path` stays below the directory `root`, taking `.` and `..` as they are written.
///
/// A path that climbs out and comes back counts as outside: with symbolic links in it, it might not come back.
fn is_beneath(path: &str, root: &str) -> bool {
    let is_name = |part: &&str| !part.is_empty() && *part != ".";
    if path.starts_with('/') != root.starts_with('/') {
        return false;
    }
    let mut parts = path.split('/').filter(is_name);
    for expected in root.split('/').filter(is_name) {
        if parts.next() != Some(expected) {
            return false;
        }
    }
    let mut depth = 0i64;
    let mut below = 0;
    for part in parts {
        depth += if part == ".." { -1 } else { 1 };
        if depth < 0 {
            return false;
        }
        below += 1;
    }
    below > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: Policy, image: &str, name: &str, expect: Result<&str, Reason>) {
        let got = policy.decide(Reference::BackingFile, image, name, None);
        let got = got.as_ref().map(|a| a.name.as_str()).map_err(|r| r.reason);
        assert_eq!(got, expect, "{image} {name}");
    }

    #[test]
    fn trust_follows_everything() {
        let trust = Policy::trust();
        check(trust, "/a/b.qcow2", "base", Ok("/a/base"));
        check(trust, "/a/b.qcow2", "/etc/passwd", Ok("/etc/passwd"));
        check(trust, "b.qcow2", "nbd://host", Ok("nbd://host"));
        check(trust, "b.qcow2", "json:{}", Ok("json:{}"));
    }

    #[test]
    fn confine_follows_plain_names_at_or_below_the_image() {
        let confine = Policy::confine();
        check(confine, "b.qcow2", "base", Ok("base"));
        check(confine, "./b.qcow2", "base", Ok("./base"));
        check(confine, "/a/b.qcow2", "sub/../base", Ok("/a/sub/../base"));
        check(confine, "/a/b.qcow2", "/a/sub/base", Ok("/a/sub/base"));
        check(confine, "../x/b.qcow2", "base", Ok("../x/base"));
        check(confine, "/b.qcow2", "base", Ok("/base"));
    }

    #[test]
    fn confine_refuses_the_rest() {
        let confine = Policy::confine();
        for name in ["../base", "/etc/passwd", "sub/../../b", "/a/bb/base", "/a/b/../c", "/a/b", ".."] {
            check(confine, "/a/b/o.qcow2", name, Err(Reason::Outside));
        }
        for name in ["json:{}", "nbd:h:1", "file:base", "", "a\0b", "fat:."] {
            check(confine, "/a/b/o.qcow2", name, Err(Reason::NotPlain));
        }
        check(confine, "nbd://h/x", "base", Err(Reason::NoDirectory));
        check(confine, "o.qcow2", "/base", Err(Reason::Outside));
    }

    #[test]
    fn a_chain_is_confined_to_the_first_image() {
        let allowed = Policy::confine()
            .decide(Reference::BackingFile, "/a/sub/mid", "../base", Some("/a/"))
            .map(|a| (a.name, a.beneath));
        assert_eq!(allowed, Ok(("/a/sub/../base".to_owned(), Some("/a/".to_owned()))));
    }

    #[test]
    fn a_refusal_names_the_file_and_what_would_allow_it() {
        let refusal = Policy::none().decide(Reference::DataFile, "/a/b", "d", None).expect_err("none");
        assert_eq!(
            refusal.to_string(),
            "policy 'none' does not open data file 'd' of '/a/b': it is another file \
             (--policy=confine or COWBELL_POLICY=confine allows it)"
        );
        assert_eq!("nothing".parse::<Policy>().map_err(|e| e.name), Err("nothing".to_owned()));
    }
}
