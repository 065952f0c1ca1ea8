//! Dirty bitmaps in turns with the reference: one program records or changes, both tell the same bits.
//!
//! The reference shows bits only over NBD, in the status that `x-dirty-bitmap` asks for.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const REFERENCE: &str = "version 10.0.";
const SIZE: u64 = 40 << 20;

/// Whose program runs.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Ours,
    Theirs,
}

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn run(&self, whose: Whose, tool: &str, args: &[&str]) -> Output {
        let mut command = match whose {
            Whose::Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_cowbell"));
                command.arg(tool);
                command
            }
            Whose::Theirs => Command::new(format!("qemu-{tool}")),
        };
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        let output = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{whose:?} {tool} {args:?}: {text}");
        output
    }

    fn json(&self, whose: Whose, args: &[&str]) -> Value {
        serde_json::from_slice(&self.run(whose, "img", args).stdout).expect("JSON")
    }

    /// What this program says is dirty.
    fn ours(&self, bitmap: &str) -> Vec<(u64, u64)> {
        let list = self.json(Whose::Ours, &["bitmap", "--dump", "--output=json", "a.qcow2", bitmap]);
        runs(&list, |_| true)
    }

    /// What the reference says is dirty. It exports only bitmaps that do not record.
    fn theirs(&self, bitmap: &str) -> Vec<(u64, u64)> {
        let path = |name: &str| self.dir.path().join(name);
        std::fs::copy(path("a.qcow2"), path("copy.qcow2")).expect("copied");
        self.run(Whose::Theirs, "img", &["bitmap", "--disable", "copy.qcow2", bitmap]);
        let server = Server::start(self.dir.path(), bitmap);
        let options = format!(
            "driver=nbd,server.type=unix,server.path=socket,x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
        );
        let list = self.json(Whose::Theirs, &["map", "--output=json", "--image-opts", &options]);
        drop(server);
        // The bit that says dirty is taken for the one that says hole.
        runs(&list, |item| item["data"] == false)
    }
}

fn runs(list: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for item in list.as_array().expect("a list").iter().filter(|item| wanted(item)) {
        let start = item["start"].as_u64().expect("a number");
        let end = start + item["length"].as_u64().expect("a number");
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

/// The reference's server of `copy.qcow2`, until it is dropped.
struct Server(Child);

impl Server {
    fn start(dir: &Path, bitmap: &str) -> Self {
        let socket = dir.join("socket");
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("qemu-nbd")
            .args(["-r", "-f", "qcow2", "-B", bitmap, "-k"])
            .arg(&socket)
            .arg("copy.qcow2")
            .current_dir(dir)
            .stdin(Stdio::null())
            .spawn()
            .expect("it runs");
        let server = Self(child);
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn whose(&mut self) -> Whose {
        [Whose::Ours, Whose::Theirs][self.below(2) as usize]
    }
}

fn change_disk(lab: &Lab, rng: &mut Rng) {
    let mut commands = vec!["-d".to_owned(), "unmap".to_owned()];
    for _ in 0..1 + rng.below(4) {
        let offset = rng.below(SIZE / 512) * 512;
        let magnitude = 9 + rng.below(13);
        let len = (1 + rng.below(1 << magnitude)).min(SIZE - offset);
        let verb = ["write", "write -z", "write -zu", "discard"][rng.below(4) as usize];
        // The reference refuses discards and writes of zeroes that are not whole sectors in one case or the other.
        let len = if verb == "write" { len } else { len.next_multiple_of(512).min(SIZE - offset) };
        commands.extend(["-c".to_owned(), format!("{verb} {offset} {len}")]);
    }
    commands.push("a.qcow2".to_owned());
    let args: Vec<&str> = commands.iter().map(String::as_str).collect();
    lab.run(rng.whose(), "io", &args);
}

fn change_bitmaps(lab: &Lab, names: &[&str], rng: &mut Rng) {
    let name = names[rng.below(names.len() as u64) as usize];
    let other = names[rng.below(names.len() as u64) as usize];
    let whose = rng.whose();
    match rng.below(5) {
        0 => lab.run(whose, "img", &["bitmap", "--clear", "a.qcow2", name]),
        1 => lab.run(whose, "img", &["bitmap", "--disable", "a.qcow2", name]),
        2 => lab.run(whose, "img", &["bitmap", "--enable", "a.qcow2", name]),
        3 => lab.run(whose, "img", &["bitmap", "--merge", other, "a.qcow2", name]),
        _ => lab.run(whose, "img", &["bitmap", "--remove", "--add", "-g", "8k", "a.qcow2", name]),
    };
}

fn ping_pong(cluster_size: &str, seed: u64) {
    let lab = Lab { dir: tempfile::tempdir().expect("a directory") };
    let mut rng = Rng(seed * 2 + 1);
    let options = format!("cluster_size={cluster_size}");
    let size = SIZE.to_string();
    lab.run(rng.whose(), "img", &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size]);
    let names = ["fine", "middle", "coarse"];
    for (name, granularity) in names.iter().zip(["512", "64k", "1M"]) {
        lab.run(rng.whose(), "img", &["bitmap", "--add", "-g", granularity, "a.qcow2", name]);
    }
    let mut compared = 0;
    for step in 0..12 {
        change_disk(&lab, &mut rng);
        if step % 2 == 1 {
            change_bitmaps(&lab, &names, &mut rng);
        }
        if step % 3 == 2 {
            for name in names {
                let ours = lab.ours(name);
                compared += ours.len();
                assert_eq!(ours, lab.theirs(name), "{name}, step {step}");
            }
        }
        lab.run(Whose::Ours, "img", &["check", "-q", "a.qcow2"]);
        lab.run(Whose::Theirs, "img", &["check", "-q", "a.qcow2"]);
    }
    assert!(compared > 10, "there was something to compare");
}

#[test]
fn both_programs_record_and_read_the_same_bits() {
    let version = Command::new("qemu-nbd").arg("--version").output();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    if !version.contains(&REFERENCE["version ".len()..]) {
        println!("skipped: no qemu-nbd {REFERENCE}x on PATH");
        return;
    }
    for (seed, cluster_size) in ["64k", "4k", "512", "2M"].into_iter().enumerate() {
        ping_pong(cluster_size, seed as u64 + 1);
    }
}
