//! `install-links`: the drop-in names as symbolic links to this program.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::face::Face;
use crate::open::reason;
use crate::out::{Out, complain};

/// Makes the links in `dir`, and the directory if need be. Status 1 when a name was taken by something else.
///
/// # Errors
/// The directory cannot be made or cannot be written to.
pub fn install(dir: &Path) -> Result<u8> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    fs::create_dir_all(dir).map_err(|e| anyhow!("cannot make {}: {}", dir.display(), reason(&e)))?;
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
                    complain(format_args!(
                        "cowbell: {} exists and is something else; left alone",
                        link.display()
                    ));
                    status = 1;
                }
            }
            Err(e) => bail!("cannot make {}: {}", link.display(), reason(&e)),
        }
    }
    Ok(status)
}
