//! Image locks against the real tools: each refuses what the other holds.
//!
//! The tools run with their own view of the file, so these tests show what a user sees. Without `qemu-io` and
//! `qemu-img` on PATH they are skipped with a message.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use cowbell_block::ErrorKind;
use cowbell_host::{FileNode, FileOptions, Needs, lock};
use tempfile::TempDir;

/// A raw and a qcow2 image, if the tools are here.
fn images() -> Option<(TempDir, PathBuf, PathBuf)> {
    let dir = tempfile::tempdir().expect("a directory");
    let (raw, qcow2) = (dir.path().join("a.raw"), dir.path().join("a.qcow2"));
    for (format, path) in [("raw", &raw), ("qcow2", &qcow2)] {
        let made = Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(path).arg("1M").status();
        if !made.is_ok_and(|status| status.success()) || Command::new("qemu-io").arg("-V").output().is_err() {
            eprintln!("skipped: no qemu-img and qemu-io on PATH");
            return None;
        }
    }
    Some((dir, raw, qcow2))
}

/// Runs a tool to its end: its standard error, empty when it succeeded.
fn tool(name: &str, args: &[&str], image: &Path) -> String {
    let output = Command::new(name).args(args).arg(image).output().expect("the tool runs");
    match output.status.success() {
        true => String::new(),
        false => String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `qemu-io` with the image open, until dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(args: &[&str], image: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(args)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io runs");
        // Answered only after the image is open.
        writeln!(child.stdin.as_mut().expect("piped"), "length").expect("it listens");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it answers");
        assert!(line.contains("MiB"), "{line}");
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("it ends");
    }
}

fn open(path: &Path, options: FileOptions<'_>, needs: Needs) -> Result<Arc<FileNode>, String> {
    FileNode::open(path, &FileOptions { needs: Some(needs), ..options }).map_err(|e| {
        assert_eq!(e.kind(), ErrorKind::Busy);
        e.to_string().replace(&path.display().to_string(), "X")
    })
}

const HINT: &str = "\nIs another process using the image [X]?";

#[test]
fn we_refuse_what_they_hold() {
    let Some((_dir, raw, qcow2)) = images() else { return };
    let (ro, rw) = (FileOptions::read_only(), FileOptions::read_write());
    let shared_write = format!("Failed to get shared \"write\" lock{HINT}");
    let write = format!("Failed to get \"write\" lock{HINT}");
    {
        let _writer = QemuIo::open(&["-f", "qcow2"], &qcow2);
        assert_eq!(open(&qcow2, ro, lock::READ).err().as_deref(), Some(&*shared_write));
        assert_eq!(open(&qcow2, ro, lock::INSPECT).err().as_deref(), Some(&*shared_write));
        assert_eq!(open(&qcow2, rw, lock::WRITE).err().as_deref(), Some(&*write));
        assert_eq!(open(&qcow2, rw, lock::CREATE).err().as_deref(), Some(&*write));
        assert!(open(&qcow2, ro, lock::READ_SHARED).is_ok());
        assert!(open(&qcow2, ro, lock::NONE).is_ok());
    }
    {
        let _reader = QemuIo::open(&["-r", "-f", "qcow2"], &qcow2);
        assert!(open(&qcow2, ro, lock::READ).is_ok());
        assert_eq!(open(&qcow2, rw, lock::WRITE).err().as_deref(), Some(&*write));
    }
    {
        let _raw_writer = QemuIo::open(&["-f", "raw"], &raw);
        assert!(open(&raw, rw, lock::WRITE_SHARED).is_ok());
        assert_eq!(open(&raw, ro, lock::READ).err().as_deref(), Some(&*shared_write));
    }
    assert!(open(&qcow2, rw, lock::WRITE).is_ok(), "their locks are gone with them");
}

#[test]
fn they_refuse_what_we_hold() {
    let Some((_dir, raw, qcow2)) = images() else { return };
    let (ro, rw) = (FileOptions::read_only(), FileOptions::read_write());
    let read = ["-r", "-f", "qcow2", "-c", "r 0 512"];
    let write = ["-f", "qcow2", "-c", "r 0 512"];
    let shared = "Failed to get shared \"write\" lock\nIs another process using the image [";
    {
        let _writer = open(&qcow2, rw, lock::WRITE).expect("alone");
        assert!(tool("qemu-io", &read, &qcow2).contains(shared));
        assert!(tool("qemu-io", &write, &qcow2).contains("Failed to get \"write\" lock"));
        assert!(tool("qemu-img", &["info", "-f", "qcow2"], &qcow2).contains(shared));
        assert!(tool("qemu-img", &["check", "-f", "qcow2"], &qcow2).contains(shared));
        assert_eq!(tool("qemu-img", &["info", "-U", "-f", "qcow2"], &qcow2), "");
        assert_eq!(tool("qemu-io", &["-U", "-r", "-f", "qcow2", "-c", "r 0 512"], &qcow2), "");
    }
    {
        let _reader = open(&qcow2, ro, lock::READ).expect("alone");
        assert_eq!(tool("qemu-io", &read, &qcow2), "");
        assert!(tool("qemu-io", &write, &qcow2).contains("Failed to get \"write\" lock"));
    }
    {
        let _raw_writer = open(&raw, rw, lock::WRITE_SHARED).expect("alone");
        assert_eq!(tool("qemu-io", &["-f", "raw", "-c", "w 0 512"], &raw), "");
        let target = raw.with_extension("copy");
        let args = ["convert", "-f", "raw", "-O", "raw"];
        let output =
            Command::new("qemu-img").args(args).arg(&raw).arg(target).output().expect("the tool runs");
        assert!(String::from_utf8_lossy(&output.stderr).contains(shared));
    }
    {
        let node = open(&qcow2, rw, lock::WRITE).expect("alone");
        cowbell_host::block_on(cowbell_block::Node::close(&*node)).expect("closed");
        assert_eq!(tool("qemu-io", &write, &qcow2), "", "released by close, not by drop");
        drop(node);
    }
}

#[test]
fn we_take_the_bytes_that_they_take() {
    let Some((_dir, raw, qcow2)) = images() else { return };
    let cases: [(&[&str], &Path, FileOptions<'_>, Needs); 4] = [
        (&["-r", "-f", "raw"], &raw, FileOptions::read_only(), lock::READ_SHARED),
        (&["-f", "raw"], &raw, FileOptions::read_write(), lock::WRITE_SHARED),
        (&["-r", "-f", "qcow2"], &qcow2, FileOptions::read_only(), lock::READ),
        (&["-f", "qcow2"], &qcow2, FileOptions::read_write(), lock::WRITE),
    ];
    for (args, path, options, needs) in cases {
        let theirs = {
            let _open = QemuIo::open(args, path);
            locked_bytes(path)
        };
        let _ours = open(path, options, needs).expect("alone");
        assert_eq!(locked_bytes(path), theirs, "{args:?}");
    }
}

/// Ranges locked in the file, by anybody, as the kernel lists them.
fn locked_bytes(path: &Path) -> Vec<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{}", std::fs::metadata(path).expect("there").ino());
    let locks = std::fs::read_to_string("/proc/locks").expect("Linux");
    let mut bytes: Vec<_> = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1] == "OFDLCK" && fields[5].ends_with(&inode))
        .map(|fields| (fields[6].parse().expect("a number"), fields[7].parse().expect("a number")))
        .collect();
    bytes.sort_unstable();
    bytes
}
