//! A directory in which both tools run, and the record of what they ran.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Seconds after which a tool counts as hanging.
const TIMEOUT_S: &str = "30";

/// Whose tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `cowbell`, by the drop-in names.
    Ours,
    /// The reference, from PATH.
    Theirs,
}

impl Side {
    /// Its name in the script.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Theirs => "theirs",
        }
    }
}

/// Where the tools lie.
#[derive(Debug)]
pub struct Tools {
    ours: PathBuf,
    theirs: PathBuf,
    /// The first line of the reference's `--version`.
    pub version: String,
}

impl Tools {
    /// Makes the drop-in names below `out`, and finds the reference on PATH.
    pub fn prepare(cowbell: &Path, out: &Path) -> Result<Self, String> {
        let cowbell = fs::canonicalize(cowbell).map_err(|e| format!("{}: {e}", cowbell.display()))?;
        let ours = out.join("bin");
        fs::create_dir_all(&ours).map_err(|e| format!("{}: {e}", ours.display()))?;
        let ours = fs::canonicalize(&ours).map_err(|e| format!("{}: {e}", ours.display()))?;
        for name in ["qemu-img", "qemu-io"] {
            let link = ours.join(name);
            let _ = fs::remove_file(&link);
            symlink(&cowbell, &link).map_err(|e| format!("{}: {e}", link.display()))?;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let theirs = std::env::split_paths(&path)
            .find(|directory| directory.join("qemu-img").is_file() && directory.join("qemu-io").is_file())
            .ok_or("qemu-img and qemu-io are not on PATH")?;
        let output = Command::new(theirs.join("qemu-img")).arg("--version").output();
        let output = output.map_err(|e| format!("qemu-img: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().next().unwrap_or_default().to_owned();
        if !version.contains(" version 10.0.") || version.contains("cowbell") {
            return Err(format!("the reference is 10.0.x, and {} is '{version}'", theirs.display()));
        }
        Ok(Self { ours, theirs, version })
    }

    /// A PATH on which the tools of that side come first.
    fn search_path(&self, side: Side) -> OsString {
        let mut path = match side {
            Side::Ours => self.ours.clone(),
            Side::Theirs => self.theirs.clone(),
        }
        .into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path
    }
}

/// What a tool did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Exit status; 124 after a time-out, 128 and more after a signal.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Fails unless the status is 0.
    pub fn ok(self, what: &str) -> Result<Self, String> {
        if self.status == 0 { Ok(self) } else { Err(format!("{what}: {}", self.describe())) }
    }

    /// Status and output in one text.
    pub fn describe(&self) -> String {
        let word = match self.status {
            124 => " (hangs)",
            101 => " (panic)",
            _ => "",
        };
        format!("status {}{word}\n{}{}", self.status, tail(&self.out), tail(&self.err))
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].iter().map(|line| format!("      {line}\n")).collect()
}

/// One directory and what ran in it.
#[derive(Debug)]
pub struct Lab<'a> {
    tools: &'a Tools,
    /// The directory; all file names are relative to it.
    pub dir: PathBuf,
    script: String,
    inputs: u32,
}

impl<'a> Lab<'a> {
    /// An empty directory.
    pub fn new(tools: &'a Tools, dir: &Path) -> Result<Self, String> {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let dir = fs::canonicalize(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(Self { tools, dir, script: String::new(), inputs: 0 })
    }

    /// Runs `qemu-img` of that side.
    pub fn img(&mut self, side: Side, args: &[&str]) -> Result<Ran, String> {
        self.note(&format!("run {} qemu-img {}", side.name(), quote(args)));
        self.spawn(side, "qemu-img", args, Stdio::null())
    }

    /// Runs `qemu-io` of that side, with these commands on its standard input.
    pub fn io(&mut self, side: Side, args: &[&str], commands: &str) -> Result<Ran, String> {
        self.inputs += 1;
        let name = format!("batch-{}.io", self.inputs);
        self.write(&name, commands.as_bytes())?;
        self.note(&format!("run {} qemu-io {} < {name}", side.name(), quote(args)));
        let input = File::open(self.dir.join(&name)).map_err(|e| format!("{name}: {e}"))?;
        self.spawn(side, "qemu-io", args, Stdio::from(input))
    }

    fn spawn(&self, side: Side, tool: &str, args: &[&str], input: Stdio) -> Result<Ran, String> {
        // By its name alone, as a user types it: messages show what was typed.
        let output = Command::new("timeout")
            .arg(TIMEOUT_S)
            .arg(tool)
            .env("PATH", self.tools.search_path(side))
            .args(args)
            .current_dir(&self.dir)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(input)
            .output()
            .map_err(|e| format!("{tool}: {e}"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran {
            status: output.status.code().unwrap_or(255),
            out: text(output.stdout),
            err: text(output.stderr),
        })
    }

    /// Adds a line to the script.
    pub fn note(&mut self, line: &str) {
        let _ = writeln!(self.script, "{line}");
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), String> {
        fs::write(self.dir.join(name), content).map_err(|e| format!("{name}: {e}"))
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        fs::read(self.dir.join(name)).map_err(|e| format!("{name}: {e}"))
    }

    /// Leaves nothing behind.
    pub fn remove(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Writes the script that runs all this again, and returns the command that calls it.
    pub fn write_script(&self) -> String {
        let text = format!(
            "#!/usr/bin/env bash\n\
             # Runs the sequence again, by those who ran it, or all of it by one side:\n\
             #   {0}/replay.sh [ours|theirs]\n\
             cd \"$(dirname \"$0\")\" || exit\n\
             all=${{1:-}}\n\
             ours={1}\n\
             theirs={2}\n\
             run() {{\n\
             \x20   side=${{all:-$1}}; tool=$2; shift 2\n\
             \x20   echo \"\\$ $side $tool $*\"\n\
             \x20   \"${{!side}}/$tool\" \"$@\"\n\
             \x20   echo \"status $?\"\n\
             }}\n\
             {3}",
            self.dir.display(),
            self.tools.ours.display(),
            self.tools.theirs.display(),
            self.script
        );
        let path = self.dir.join("replay.sh");
        let written = fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
        match written {
            Ok(()) => path.display().to_string(),
            Err(error) => format!("(no script: {error})"),
        }
    }
}

/// Arguments as a shell reads them.
pub fn quote(args: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:+%".contains(c);
    let quoted: Vec<String> = args
        .iter()
        .map(|arg| {
            if !arg.is_empty() && arg.chars().all(plain) {
                (*arg).to_owned()
            } else {
                format!("'{}'", arg.replace('\'', "'\\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_a_shell() {
        assert_eq!(quote(&["-o", "a=b,c", ""]), "-o a=b,c ''");
        assert_eq!(quote(&["it's"]), "'it'\\''s'");
    }
}
