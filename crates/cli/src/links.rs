//! `install-links`: the drop-in names as symbolic links to this program.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::face::Face;
use crate::out::Out;

/// Makes the links in `dir`. Status 1 when a name was taken by something else.
///
/// # Errors
/// The directory is not there or cannot be written to.
pub fn install(dir: &Path) -> Result<u8> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut out = Out::new();
    let mut status = 0;
    for name in Face::LINKS {
        let link = dir.join(name);
        match std::os::unix::fs::symlink(&program, &link) {
            Ok(()) => out.line(&format!("{} -> {}", link.display(), program.display())),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                if fs::canonicalize(&link).ok() == fs::canonicalize(&program).ok() {
                    out.line(&format!("{} is there already", link.display()));
                } else {
                    eprintln!("cowbell: {} exists and is something else; left alone", link.display());
                    status = 1;
                }
            }
            Err(e) => return Err(e).with_context(|| format!("cannot make {}", link.display())),
        }
    }
    Ok(status)
}
