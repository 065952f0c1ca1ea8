//! Paths and the names they have inside the program: see [`cowbell_block::names`].

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use cowbell_block::names;

/// The path that `name` means.
pub fn path_of(name: &str) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&names::to_bytes(name)))
}

/// The name of `path`, or of any other text from the operating system.
pub fn name_of(path: impl AsRef<OsStr>) -> String {
    names::from_bytes(path.as_ref().as_bytes())
}
