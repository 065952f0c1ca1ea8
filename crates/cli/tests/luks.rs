//! Encrypted images, both ways with the reference and with `cryptsetup`. What is not on PATH is skipped with a message.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const OURS: &str = env!("CARGO_BIN_EXE_cowbell");
const SECRET: [&str; 2] = ["--object", "secret,id=s,data=correct horse"];
const OPENED: &str = "driver=luks,file.filename=a.luks,key-secret=s";

/// A directory with `plain.raw`, 256 KiB of data with a hole.
fn with_source() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let mut state = 1u32;
    let mut content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(256 << 10)
    .collect();
    content[70_000..150_000].fill(0);
    fs::write(dir.path().join("plain.raw"), content).expect("written");
    dir
}

/// One of the two programs, called like the reference's `qemu-img`.
#[derive(Clone, Copy, Debug)]
enum Tool {
    Ours,
    Reference,
}

impl Tool {
    fn run(self, dir: &Path, args: &[&str]) -> Output {
        let (program, first): (&str, &[&str]) = match self {
            Self::Ours => (OURS, &["img"]),
            Self::Reference => ("qemu-img", &[]),
        };
        Command::new(program)
            .args(first)
            .args(args)
            .current_dir(dir)
            .env_remove("COWBELL_POLICY")
            .stdin(Stdio::null())
            .output()
            .expect("the program runs")
    }

    fn good(self, dir: &Path, args: &[&str]) -> String {
        let output = self.run(dir, args);
        assert!(output.status.success(), "{self:?} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn bad(self, dir: &Path, args: &[&str]) -> String {
        let output = self.run(dir, args);
        assert_eq!(output.status.code(), Some(1), "{self:?} {args:?}");
        String::from_utf8(output.stderr).expect("text").trim_end().to_owned()
    }

    /// Encrypts `plain.raw` into `a.luks`.
    fn encrypt(self, dir: &Path, options: &str) {
        let options = format!("key-secret=s,iter-time=1{options}");
        let args = [
            "convert",
            "-f",
            "raw",
            "-O",
            "luks",
            SECRET[0],
            SECRET[1],
            "-o",
            &options,
            "plain.raw",
            "a.luks",
        ];
        self.good(dir, &args);
    }

    /// Whether `a.luks` holds what `plain.raw` holds.
    fn compares(self, dir: &Path, image: &str) {
        let raw = "driver=raw,file.filename=plain.raw";
        let said = self.good(dir, &["compare", SECRET[0], SECRET[1], "--image-opts", image, raw]);
        assert_eq!(said, "Images are identical.\n", "{self:?} {image}");
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no {program} on PATH");
    }
    found
}

/// Combinations that the reference's tools take: each cipher and mode, each generator and hash at least once.
fn combinations() -> Vec<String> {
    let ivs = [
        ",ivgen-alg=plain64",
        ",ivgen-alg=plain",
        ",ivgen-alg=essiv,ivgen-hash-alg=sha256",
        ",ivgen-alg=essiv,ivgen-hash-alg=md5",
    ];
    let hashes = ["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3"];
    let mut out = Vec::new();
    for cipher in [
        "aes-128",
        "aes-192",
        "aes-256",
        "cast5-128",
        "serpent-128",
        "serpent-192",
        "serpent-256",
        "twofish-128",
        "twofish-192",
        "twofish-256",
    ] {
        for mode in ["ecb", "cbc", "xts", "ctr"] {
            // The reference ends itself with 24-byte keys, whose key material is no whole number of sectors.
            let refused = if mode == "xts" { cipher == "cast5-128" } else { cipher.ends_with("192") };
            if refused {
                continue;
            }
            let iv = match cipher {
                "cast5-128" => [ivs[0], ivs[1], ivs[3]][out.len() % 3],
                _ => ivs[(out.len() + out.len() / 4) % 4],
            };
            let hash = hashes[out.len() % hashes.len()];
            out.push(format!(",cipher-alg={cipher},cipher-mode={mode}{iv},hash-alg={hash}"));
        }
    }
    out
}

#[test]
fn every_cipher_goes_both_ways_with_the_reference() {
    if !has("qemu-img") {
        return;
    }
    let dir = with_source();
    for options in combinations() {
        Tool::Ours.encrypt(dir.path(), &options);
        Tool::Reference.compares(dir.path(), OPENED);
        let facts = |tool: Tool| tool.good(dir.path(), &["info", "--output=json", "a.luks"]);
        assert_eq!(facts(Tool::Ours), facts(Tool::Reference), "{options}");
    }
    // The reference measures for two seconds whenever it makes a volume: one of each cipher is enough.
    for options in combinations().iter().step_by(3) {
        Tool::Reference.encrypt(dir.path(), options);
        Tool::Ours.compares(dir.path(), OPENED);
    }
}

#[test]
fn info_and_errors_read_as_the_references() {
    if !has("qemu-img") {
        return;
    }
    let dir = with_source();
    Tool::Ours.encrypt(dir.path(), "");
    for args in [
        &["info", "a.luks"][..],
        &["info", "--image-opts", OPENED],
        &["map", "--output=json", SECRET[0], SECRET[1], "--image-opts", OPENED],
    ] {
        assert_eq!(Tool::Ours.good(dir.path(), args), Tool::Reference.good(dir.path(), args));
    }
    let wrong = "secret,id=s,data=battery staple";
    let new = ["create", "-q", "-f", "luks"];
    for args in [
        &["map", "a.luks"][..],
        &["map", "--image-opts", OPENED],
        &["map", "--object", wrong, "--image-opts", OPENED],
        &[new[0], new[1], new[2], new[3], "b.luks", "1M"],
        &[new[0], new[1], new[2], new[3], "-o", "key-secret=s", "b.luks", "1M"],
        &[
            "create",
            "-q",
            "-f",
            "luks",
            SECRET[0],
            SECRET[1],
            "-o",
            "key-secret=s,cipher-alg=sm4",
            "b.luks",
            "1M",
        ],
        &[
            "create",
            "-q",
            "-f",
            "luks",
            SECRET[0],
            SECRET[1],
            "-o",
            "key-secret=s,cipher-mode=foo",
            "b.luks",
            "1M",
        ],
        &["create", "-q", "-f", "luks", "--object", "nosuch,id=s", "b.luks", "1M"],
    ] {
        let (ours, theirs) = (Tool::Ours.bad(dir.path(), args), Tool::Reference.bad(dir.path(), args));
        assert_eq!(ours.replace("cowbell: ", "qemu-img: "), theirs, "{args:?}");
    }
}

fn cryptsetup(dir: &Path, args: &[&str]) -> Output {
    let mut child = Command::new("cryptsetup")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cryptsetup runs");
    use std::io::Write;
    child.stdin.take().expect("piped").write_all(b"correct horse").expect("read by cryptsetup");
    child.wait_with_output().expect("cryptsetup ends")
}

/// Whether it did what was asked. Ciphers that the kernel does not lend it are skipped with a message.
fn succeeds(output: &Output, what: &str) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("device-mapper") || said.contains("Required kernel crypto interface") {
        eprintln!("skipped: {what}: this kernel lends cryptsetup no such cipher");
        return false;
    }
    assert!(output.status.success(), "{what}: {said}");
    true
}

#[test]
fn cryptsetup_opens_ours_and_makes_what_we_open() {
    if !has("cryptsetup") {
        return;
    }
    let dir = with_source();
    let test = ["luksOpen", "--test-passphrase", "--key-file=-", "a.luks"];
    for options in [
        "",
        ",cipher-alg=serpent-256,hash-alg=sha512",
        ",cipher-alg=twofish-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=ripemd160",
        ",cipher-alg=aes-192,cipher-mode=cbc,hash-alg=sha1",
    ] {
        Tool::Ours.encrypt(dir.path(), options);
        Tool::Ours.compares(dir.path(), OPENED);
        succeeds(&cryptsetup(dir.path(), &test), options);
    }
    for cipher in ["aes-xts-plain64", "aes-cbc-essiv:sha256", "serpent-cbc-plain", "twofish-xts-plain64"] {
        let file = fs::File::create(dir.path().join("a.luks")).expect("created");
        file.set_len(4 << 20).expect("as long as needed");
        let format =
            ["luksFormat", "--type=luks1", "--batch-mode", "--pbkdf-force-iterations=1000", "--key-file=-"];
        let output = cryptsetup(dir.path(), &[&format[..], &["--cipher", cipher, "a.luks"]].concat());
        if !succeeds(&output, cipher) {
            continue;
        }
        Tool::Ours.good(dir.path(), &["map", "--output=json", SECRET[0], SECRET[1], "--image-opts", OPENED]);
    }
}

#[test]
fn a_header_may_lie_in_a_file_of_its_own() {
    let dir = with_source();
    let options = "key-secret=s,iter-time=1,detached-header=on";
    Tool::Ours.good(
        dir.path(),
        &["create", "-q", "-f", "luks", SECRET[0], SECRET[1], "-o", options, "head", "256k"],
    );
    fs::write(dir.path().join("body"), vec![0; 256 << 10]).expect("written");
    let image = "driver=luks,file.filename=body,header.filename=head,key-secret=s";
    Tool::Ours.good(
        dir.path(),
        &["convert", "-n", "-f", "raw", SECRET[0], SECRET[1], "--target-image-opts", "plain.raw", image],
    );
    Tool::Ours.compares(dir.path(), image);
    let info = Tool::Ours.good(dir.path(), &["info", "--image-opts", image]);
    assert!(info.contains("detached header: true\n") && info.contains("payload offset: 0\n"), "{info}");
    if has("qemu-img") {
        Tool::Reference.compares(dir.path(), image);
        assert_eq!(info, Tool::Reference.good(dir.path(), &["info", "--image-opts", image]));
    }
    if has("cryptsetup") {
        let test = ["luksOpen", "--test-passphrase", "--key-file=-", "--header", "head", "body"];
        succeeds(&cryptsetup(dir.path(), &test), "detached");
    }
}

const QCOW2: &str = "driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=s";

/// Encrypted qcow2 images, by their options of creation.
const IMAGES: [&str; 7] = [
    "encrypt.format=luks,encrypt.iter-time=1",
    "encrypt.format=luks,encrypt.iter-time=1,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,cluster_size=512",
    "encrypt.format=luks,encrypt.iter-time=1,extended_l2=on",
    "encrypt.format=luks,encrypt.iter-time=1,preallocation=metadata",
    "encrypt.format=luks,encrypt.iter-time=1,compat=0.10",
    "encrypt.format=aes",
    "encrypt.format=aes,compat=0.10,cluster_size=4096",
];

#[test]
fn encrypted_qcow2_images_go_both_ways_with_the_reference() {
    if !has("qemu-img") {
        return;
    }
    let dir = with_source();
    for options in IMAGES {
        let options = format!("encrypt.key-secret=s,{options}");
        let convert = [
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            SECRET[0],
            SECRET[1],
            "-o",
            &options,
            "plain.raw",
            "a.qcow2",
        ];
        Tool::Ours.good(dir.path(), &convert);
        Tool::Reference.compares(dir.path(), QCOW2);
        Tool::Reference.good(dir.path(), &["check", SECRET[0], SECRET[1], "--image-opts", QCOW2]);
        for args in [&["info", "a.qcow2"][..], &["info", "--output=json", "--image-opts", QCOW2]] {
            assert_eq!(
                Tool::Ours.good(dir.path(), args),
                Tool::Reference.good(dir.path(), args),
                "{options}"
            );
        }
        Tool::Reference.good(dir.path(), &convert);
        Tool::Ours.compares(dir.path(), QCOW2);
        Tool::Ours.good(dir.path(), &["check", SECRET[0], SECRET[1], "--image-opts", QCOW2]);
    }
}

#[test]
fn requests_to_encrypted_qcow2_images_do_what_they_do_to_raw_ones() {
    let dir = with_source();
    let mut state = 7u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for options in IMAGES {
        let options = format!("encrypt.key-secret=s,{options}");
        let create = ["create", "-q", "-f", "qcow2", SECRET[0], SECRET[1], "-o", &options, "a.qcow2", "256k"];
        Tool::Ours.good(dir.path(), &create);
        fs::write(dir.path().join("plain.raw"), vec![0; 256 << 10]).expect("written");
        let commands: Vec<String> = (0..50)
            .map(|_| {
                let at = draw(256 << 10);
                let len = [1, 511, 512, 4096, 70_000][draw(5) as usize].min((256 << 10) - at);
                match draw(5) {
                    0 => format!("write -z {at} {len}"),
                    _ => format!("write -P {} {at} {len}", 1 + draw(255)),
                }
            })
            .collect();
        for image in [QCOW2, "driver=raw,file.filename=plain.raw"] {
            let mut io = Command::new(OURS);
            io.current_dir(dir.path()).args(["io", SECRET[0], SECRET[1], "--image-opts", image]);
            commands.iter().for_each(|command| {
                io.args(["-c", command]);
            });
            let output = io.output().expect("the program runs");
            assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Tool::Ours.compares(dir.path(), QCOW2);
        if has("qemu-img") {
            Tool::Reference.compares(dir.path(), QCOW2);
        }
    }
}

#[test]
fn encrypted_qcow2_images_are_refused_as_by_the_reference() {
    if !has("qemu-img") {
        return;
    }
    let dir = with_source();
    let options = format!("encrypt.key-secret=s,{}", IMAGES[0]);
    Tool::Ours.good(
        dir.path(),
        &["create", "-q", "-f", "qcow2", SECRET[0], SECRET[1], "-o", &options, "a.qcow2", "256k"],
    );
    Tool::Ours.good(dir.path(), &["create", "-q", "-f", "qcow2", "plain.qcow2", "256k"]);
    let io = Command::new(OURS)
        .current_dir(dir.path())
        .args(["io", SECRET[0], SECRET[1], "-c", "write -c 0 64k", "--image-opts", QCOW2])
        .output()
        .expect("the program runs");
    assert!(!io.status.success(), "compressed clusters would be stored plain");
    let wrong = "secret,id=s,data=battery staple";
    let create = ["create", "-q", "-f", "qcow2", SECRET[0], SECRET[1], "-o"];
    let of = |options: &'static str| [&create[..], &[options, "b.qcow2", "1M"]].concat();
    let map =
        |object: &'static str, image: &'static str| vec!["map", "--object", object, "--image-opts", image];
    for args in [
        vec!["map", "a.qcow2"],
        map(wrong, QCOW2),
        map(SECRET[1], "driver=qcow2,file.filename=a.qcow2,encrypt.format=aes,encrypt.key-secret=s"),
        map(SECRET[1], "driver=qcow2,file.filename=plain.qcow2,encrypt.format=luks,encrypt.key-secret=s"),
        of("encrypt.format=luks"),
        of("encrypt.key-secret=s"),
        of("encrypt.format=foo,encrypt.key-secret=s"),
        of("encrypt.format=luks,encrypt.key-secret=t"),
        of("encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-128"),
        of("encryption=on"),
        of("encryption=on,encrypt.format=luks,encrypt.key-secret=s"),
        of("encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo"),
    ] {
        let (ours, theirs) = (Tool::Ours.bad(dir.path(), &args), Tool::Reference.bad(dir.path(), &args));
        assert_eq!(ours.replace("cowbell: ", "qemu-img: "), theirs, "{args:?}");
    }
}

/// Key slots of `k` are changed by one tool after the other, each on its own copy; both say and do the same.
#[test]
fn key_slots_are_amended_as_by_the_reference() {
    if !has("qemu-img") {
        return;
    }
    let dir = with_source();
    let new = ["--object", "secret,id=n,data=battery staple"];
    let wrong = ["--object", "secret,id=w,data=wrong"];
    for (format, prefix) in [("luks", ""), ("qcow2", "encrypt.")] {
        let made = match format {
            "luks" => "key-secret=s,iter-time=1",
            _ => "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1",
        };
        Tool::Ours.good(
            dir.path(),
            &["create", "-q", "-f", format, SECRET[0], SECRET[1], "-o", made, "ours", "64k"],
        );
        fs::copy(dir.path().join("ours"), dir.path().join("theirs")).expect("copied");
        for wanted in [
            "state=active",
            "state=active,new-secret=n,keyslot=0",
            "state=active,new-secret=n,iter-time=1",
            "state=inactive,iter-time=10",
            "state=inactive,old-secret=w",
            "state=inactive,keyslot=5",
            "state=inactive,keyslot=1,old-secret=w",
            "state=inactive,old-secret=s",
            "state=inactive,keyslot=1",
            "key-secret=s",
        ] {
            let options =
                wanted.split(',').map(|option| format!("{prefix}{option}")).collect::<Vec<_>>().join(",");
            let amend = |tool: Tool, file: &str| {
                let image = format!("driver={format},file.filename={file},{prefix}key-secret=n");
                let first = format!("driver={format},file.filename={file},{prefix}key-secret=s");
                let objects = [SECRET, new, wrong].concat();
                let with = |image: &str| {
                    tool.run(
                        dir.path(),
                        &[&["amend", "--image-opts", "-o", &options, image][..], &objects].concat(),
                    )
                };
                // The first passphrase is gone in the middle; then the new one opens the image.
                let said = [with(&first), with(&image)];
                said.map(|output| String::from_utf8_lossy(&output.stderr).replace("theirs", "ours"))
            };
            let ours = amend(Tool::Ours, "ours").map(|said| said.replace("cowbell: ", "qemu-img: "));
            assert_eq!(ours, amend(Tool::Reference, "theirs"), "{format} {wanted}");
        }
    }
}
