//! Real guests for the machine: Debian's kernel and a static busybox, got by apt, booted and put to work.
//!
//! | module | duty |
//! |---|---|
//! | [`fetch`] | the packages, from the mirror that this host uses, into a cache; nothing is installed |
//! | [`build`] | initial RAM disk and ext4 disk |
//! | [`session`] | a console with a program at its other end |
//! | [`check`] | what must hold of the machine with a real kernel in it |
//! | [`programs`] | our own small guests: built again and compared |
//! | [`mod@bench`] | its speed beside the reference's |
//! | [`symbols`] | the kernel's symbols as a file for GDB |

pub mod bench;
mod build;
mod check;
mod fetch;
pub mod programs;
mod session;
mod symbols;

pub use fetch::install_tools;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::step::Outcome;

/// Where everything lies.
pub struct Guest {
    /// The kernel, a flat Image.
    pub kernel: PathBuf,
    /// OpenSBI's `fw_dynamic.bin`.
    pub firmware: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// The disk as it is at first: qcow2 with ext4 on it.
    pub disk: PathBuf,
    /// What the packages were.
    pub manifest: String,
}

/// The commands `guest linux` and `guest programs`.
pub fn run(args: &[String]) -> Result<bool> {
    match args {
        [name] if name == "linux" => crate::ci::alone("linux guest", linux),
        [name] if name == "programs" => crate::ci::alone("guest programs", programs::rebuild),
        _ => bail!("guest takes 'linux' or 'programs'"),
    }
}

/// Gets the guest ready and checks the machine with it.
pub fn linux() -> Result<Outcome> {
    let program = cargo::release_program("cowbell-cli", "cowbell", &[])?;
    match prepare(&program)? {
        Ok(guest) => {
            print!("{}", guest.manifest);
            check::all(&program, &guest)
        }
        Err(why) => Ok(Outcome::LeftOut(why)),
    }
}

/// The guest, or why it cannot be had here.
pub fn prepare(program: &Path) -> Result<std::result::Result<Guest, String>> {
    let cache = cache_directory()?;
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let packages = match fetch::packages(&cache)? {
        Ok(packages) => packages,
        Err(why) => return Ok(Err(why)),
    };
    build::guest(program, &cache, &packages).map(Ok)
}

/// `$COWBELL_GUEST_CACHE`, or a directory among the user's caches.
fn cache_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("COWBELL_GUEST_CACHE") {
        return Ok(directory.into());
    }
    let caches = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(caches), _) if !caches.is_empty() => PathBuf::from(caches),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => bail!("neither COWBELL_GUEST_CACHE nor HOME says where guests can be kept"),
    };
    Ok(caches.join("cowbell/guest"))
}
