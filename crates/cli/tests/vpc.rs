//! VHD images both ways: what one tool writes, the other reads; and what is left when we are killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const REFERENCE: &str = "version 10.0.";

fn reference() -> bool {
    let found = Command::new("qemu-io").arg("--version").output();
    found.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(REFERENCE))
}

fn run(ours: bool, dir: &Path, tool: &str, args: &[&str]) -> String {
    let mut command = match ours {
        true => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_cowbell"));
            command.arg(if tool == "qemu-io" { "io" } else { "img" });
            command
        }
        false => Command::new(tool),
    };
    let output = command.args(args).current_dir(dir).output().expect("it starts");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {text}");
    text
}

/// A number that looks random, below `n`.
fn below(state: &mut u64, n: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) % n
}

#[test]
fn both_tools_write_in_turns_and_agree() {
    if !reference() {
        eprintln!("skipped: no reference tools on PATH");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for (round, options) in ["subformat=dynamic", "subformat=fixed", "force_size=on"].into_iter().enumerate()
    {
        let mut state = 0x1234_5678 + round as u64;
        run(
            round % 2 == 0,
            dir.path(),
            "qemu-img",
            &["create", "-q", "-f", "vpc", "-o", options, "a", "30M"],
        );
        let len = 30 << 20;
        let mut model = vec![0u8; len];
        for turn in 0..12u64 {
            let mut commands = Vec::new();
            for _ in 0..6 {
                let (at, n) = (below(&mut state, 29 << 11) * 512, (1 + below(&mut state, 200)) * 512);
                let byte = 1 + below(&mut state, 250) as u8;
                let zeroes = below(&mut state, 5) == 0;
                commands.push(match zeroes {
                    true => format!("write -q -z {at} {n}"),
                    false => format!("write -q -P {byte} {at} {n}"),
                });
                model[at as usize..(at + n) as usize].fill(if zeroes { 0 } else { byte });
            }
            let mut args = vec!["-f", "vpc"];
            commands.iter().for_each(|command| args.extend(["-c", command]));
            args.push("a");
            run(turn % 2 == 0, dir.path(), "qemu-io", &args);
        }
        for ours in [true, false] {
            run(ours, dir.path(), "qemu-img", &["convert", "-f", "vpc", "-O", "raw", "a", "raw"]);
            let raw = std::fs::read(dir.path().join("raw")).expect("converted");
            assert!(
                raw[..len] == model[..] && raw[len..].iter().all(|byte| *byte == 0),
                "{options}, ours: {ours}"
            );
        }
    }
}

#[test]
fn what_a_killed_tool_leaves_is_an_image_with_all_that_was_flushed() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..6u64 {
        run(true, dir.path(), "qemu-img", &["create", "-q", "-f", "vpc", "base", "64M"]);
        run(true, dir.path(), "qemu-img", &["create", "-q", "-f", "vpc", "-b", "base", "-F", "vpc", "a"]);
        let image = if round % 2 == 0 { "base" } else { "a" };
        let mut commands = vec!["io".to_owned()];
        for at in 0..16 {
            let command = format!("write -q -P {} {}k 300k", 1 + at, at * 4000);
            commands.extend(["-c".to_owned(), command, "-c".to_owned(), "flush".to_owned()]);
            commands.extend(["-c".to_owned(), "length".to_owned()]);
        }
        commands.push(image.to_owned());
        let mut child = Command::new(env!("CARGO_BIN_EXE_cowbell"))
            .args(&commands)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(Duration::from_millis(5 + round * 9));
        // Dead or done by now: either is fine.
        let _ = child.kill();
        child.wait().expect("it ends");
        // In their order: after the first that is missing nothing is there.
        let mut missing = false;
        for at in 0..16 {
            let read = |byte: u64| {
                let command = format!("read -P {byte} {}k 300k", at * 4000);
                let output = Command::new(env!("CARGO_BIN_EXE_cowbell"))
                    .args(["io", "-r", "-U", "-c", &command, image])
                    .current_dir(dir.path())
                    .output()
                    .expect("it starts");
                let text = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                assert!(text.contains("read 307200/307200"), "{text}");
                output.status.success()
            };
            if !missing && read(1 + at) {
                continue;
            }
            // The one that was being written may be there in part.
            assert!(!missing || read(0), "round {round}: {at} came before what was flushed first");
            missing = true;
        }
        // The kernel gives back the locks of a killed process a little later, where its requests were on a ring.
        let mut tries = (0..200).map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            let write = ["io", "-c", "write -q 0 64M", image];
            let tried =
                Command::new(env!("CARGO_BIN_EXE_cowbell")).args(write).current_dir(dir.path()).output();
            tried.expect("it starts").status.success()
        });
        assert!(tries.any(|good| good), "round {round}: the image takes no more writes");
    }
}
