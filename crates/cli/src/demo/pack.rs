//! Files one after the other in a raw disk, with a table of contents at its start.
//!
//! The table is text: a title with its own length, then `OFFSET LENGTH PATH` per file, paths relative and in
//! order. Files begin at multiples of 4096.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Where files begin: multiples of this many bytes.
const ALIGN: u64 = 4096;
/// Most bytes of files: the demo is to be over in a minute on a slow disk.
const BYTES_MAX: u64 = 256 << 20;
/// Most files.
const FILES_MAX: usize = 20_000;
/// Free space behind the files, so that the disk has an empty end as disks do.
const SLACK: u64 = 16 << 20;
const TITLE: &str = "cowbell demo contents";

/// One file in the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) path: String,
}

/// A disk made from files.
pub(super) struct Packed {
    pub(super) files: Vec<Entry>,
    /// Length of the table of contents in bytes.
    pub(super) contents_len: u64,
    /// Length of the disk.
    pub(super) len: u64,
    /// Files not taken.
    pub(super) left_out: usize,
}

/// Packs the files below `from` into `disk`.
pub(super) fn pack(from: &Path, disk: &Path) -> Result<Packed> {
    let mut found = Vec::new();
    collect(from, from, &mut found)?;
    found.sort();
    let (mut taken, mut total, mut left_out) = (Vec::new(), 0, 0);
    for path in found {
        match fs::read(from.join(&path)) {
            Ok(data) if total + data.len() as u64 <= BYTES_MAX && taken.len() < FILES_MAX => {
                total += data.len() as u64;
                taken.push((path, data));
            }
            _ => left_out += 1,
        }
    }
    ensure!(!taken.is_empty(), "there are no files below {}", from.display());
    // The table's length depends on its offsets and they on its length: room for the longest offsets.
    let lines: usize = taken.iter().map(|(path, _)| path.len() + 2 * 20 + 3).sum();
    let contents_len = (lines as u64 + 100).next_multiple_of(ALIGN);
    let mut offset = contents_len;
    let mut files = Vec::new();
    for (path, data) in &taken {
        let len = data.len() as u64;
        files.push(Entry { offset, len, path: path.clone() });
        offset += len.next_multiple_of(ALIGN);
    }
    let len = (offset + SLACK).next_multiple_of(1 << 20);
    let file = File::create(disk).with_context(|| disk.display().to_string())?;
    file.set_len(len).with_context(|| disk.display().to_string())?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&contents(&files, contents_len))?;
    for (_, data) in &taken {
        out.write_all(data)?;
        let gap = (data.len() as u64).next_multiple_of(ALIGN) - data.len() as u64;
        out.write_all(&vec![0; gap as usize])?;
    }
    out.flush().with_context(|| disk.display().to_string())?;
    Ok(Packed { files, contents_len, len, left_out })
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name();
        if kind.is_dir() {
            // What is built and what git keeps is large and not what people mean by their files.
            if name != ".git" && name != "target" {
                collect(root, &path, found)?;
            }
        } else if kind.is_file()
            && let Some(relative) = path.strip_prefix(root).ok().and_then(Path::to_str)
            && !relative.contains('\n')
        {
            found.push(relative.to_owned());
        }
    }
    Ok(())
}

fn contents(files: &[Entry], len: u64) -> Vec<u8> {
    let mut text = format!("{TITLE} {len} {}\n", files.len());
    for file in files {
        let _ = writeln!(text, "{} {} {}", file.offset, file.len, file.path);
    }
    let mut bytes = text.into_bytes();
    bytes.resize(len as usize, 0);
    bytes
}

/// Reads a table of contents.
pub(super) fn parse_contents(bytes: &[u8]) -> Result<Vec<Entry>> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).context("the table of contents is not text")?;
    let mut lines = text.lines();
    if !lines.next().is_some_and(|title| title.starts_with(TITLE)) {
        bail!("there is no table of contents");
    }
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().context("a line of the table of contents is too short");
            Ok(Entry { offset: word()?.parse()?, len: word()?.parse()?, path: word()?.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_read_back() {
        let files = vec![
            Entry { offset: 4096, len: 3, path: "a b".into() },
            Entry { offset: 8192, len: 0, path: "c".into() },
        ];
        assert_eq!(parse_contents(&contents(&files, 4096)).expect("good"), files);
        assert!(parse_contents(&[0; 4096]).is_err());
    }
}
