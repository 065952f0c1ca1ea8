//! The name the program was called by, and what follows from it.

use std::ffi::OsStr;
use std::path::Path;

/// Which tool the program is, decided by the last component of `argv[0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// `cowbell` itself, or any name that is not one of the others.
    Cowbell,
    /// `qemu-img`.
    QemuImg,
    /// `qemu-io`.
    QemuIo,
}

impl Face {
    /// The face for a program name.
    pub fn of(name: &str) -> Self {
        match name {
            "qemu-img" => Self::QemuImg,
            "qemu-io" => Self::QemuIo,
            _ => Self::Cowbell,
        }
    }

    /// The drop-in names, which `install-links` makes.
    pub const LINKS: [&'static str; 2] = ["qemu-img", "qemu-io"];
}

/// The last component of `argv[0]`: the prefix of every message.
pub fn program_name(argv0: Option<&OsStr>) -> String {
    argv0
        .map(Path::new)
        .and_then(Path::file_name)
        .map_or_else(|| "cowbell".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The version of the reference whose behaviour the drop-in names stand for. Scripts parse it.
pub const REFERENCE_VERSION: &str = "10.0.2";

/// What `--version` prints.
pub fn version_text(face: Face, tool: &str) -> String {
    let own = env!("CARGO_PKG_VERSION");
    match face {
        Face::Cowbell => format!("cowbell {own}\n"),
        _ => format!("{tool} version {REFERENCE_VERSION} (cowbell {own})\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faces_follow_the_last_component() {
        let face = |path: &str| Face::of(&program_name(Some(OsStr::new(path))));
        assert_eq!(face("/opt/x/qemu-img"), Face::QemuImg);
        assert_eq!(face("qemu-io"), Face::QemuIo);
        assert_eq!(face("./cowbell"), Face::Cowbell);
        assert_eq!(face("/tmp/bell"), Face::Cowbell);
    }
}
