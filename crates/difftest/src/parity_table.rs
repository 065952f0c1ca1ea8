//! The command lines on which both tools must do and say the same.

/// How much of what the tools say must be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Exit status, standard output, standard error.
    Same,
    /// Exit status and standard output.
    SameOutput,
    /// Exit status alone: the texts have a reason to differ.
    SameStatus,
}

/// One command line.
#[derive(Debug)]
pub struct Case {
    /// `img` or `io`.
    pub tool: &'static str,
    /// Its arguments.
    pub args: &'static [&'static str],
    /// Standard input.
    pub input: &'static str,
    /// A file it makes, to be looked at with the reference.
    pub makes: Option<&'static str>,
    /// What must be the same.
    pub expect: Expect,
}

impl Case {
    /// The command line as one would type it.
    pub fn line(&self) -> String {
        let input = if self.input.is_empty() { String::new() } else { format!(" <<< {:?}", self.input) };
        format!("qemu-{} {}{input}", self.tool, crate::lab::quote(self.args)).trim_end().to_owned()
    }
}

/// Files that the cases work on: `img` or `io` with arguments and input, or a file with its content.
pub const FIXTURES: &[(&str, &str, &str)] = &[
    ("img", "create -q -f qcow2 small.qcow2 1M", ""),
    (
        "io",
        "-f qcow2 small.qcow2",
        "write -P 1 0 64k\nwrite -P 2 192k 4k\nwrite -z 256k 64k\nwrite -z 320k 1k\n",
    ),
    ("img", "create -q -f raw plain.raw 1M", ""),
    ("io", "-f raw plain.raw", "write -P 1 0 64k\nwrite -P 2 192k 4k\n"),
    ("img", "create -q -f raw longer.raw 1536k", ""),
    ("io", "-f raw longer.raw", "write -P 1 0 64k\nwrite -P 2 192k 4k\n"),
    ("img", "create -q -f qcow2 -b small.qcow2 -F qcow2 over.qcow2", ""),
    ("io", "-f qcow2 over.qcow2", "write -P 3 64k 64k\ndiscard 0 64k\n"),
    ("img", "create -q -f qcow2 -b plain.raw -F raw overraw.qcow2 2M", ""),
    ("io", "-f qcow2 overraw.qcow2", "write -P 4 100k 3k\n"),
    ("img", "create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 1000k", ""),
    ("io", "-f qcow2 v2.qcow2", "write -P 5 5k 33k\n"),
    ("img", "create -q -f qcow2 -o lazy_refcounts=on,refcount_bits=8,cluster_size=512 lazy.qcow2 64k", ""),
    ("io", "-f qcow2 lazy.qcow2", "write -P 6 1k 5k\n"),
    // Everything is mapped, little is stored.
    ("img", "create -q -f qcow2 -o preallocation=metadata,cluster_size=4k hollow.qcow2 4M", ""),
    ("io", "-f qcow2 hollow.qcow2", "write -P 7 1M 5000\nwrite -z 2M 64k\nwrite -P 8 3M 512k\n"),
    ("img", "convert -c -O qcow2 plain.raw comp.qcow2", ""),
    ("img", "convert -c -O qcow2 -o compression_type=zstd plain.raw zstd.qcow2", ""),
    ("img", "create -q -f qcow2 snap.qcow2 1M", ""),
    ("io", "-f qcow2 snap.qcow2", "write -P 1 0 128k\n"),
    ("img", "snapshot -c one snap.qcow2", ""),
    ("io", "-f qcow2 snap.qcow2", "write -P 2 0 64k\n"),
    ("img", "create -q -f qcow2 empty.qcow2 1G", ""),
    ("img", "create -q -f qcow2 leak.qcow2 1M", ""),
    ("io", "-f qcow2 leak.qcow2", "write -P 1 0 64k\n"),
    // The only entry of the L2 table is lost.
    ("io", "-f raw leak.qcow2", "write -z 262144 512\n"),
    ("img", "create -q -f qcow2 corrupt.qcow2 1M", ""),
    ("io", "-f qcow2 corrupt.qcow2", "write -P 1 0 64k\n"),
    // The refcount of the data cluster: entry 5.
    ("io", "-f raw corrupt.qcow2", "write -P 0 131082 2\n"),
    ("garbage.bin", "", "this is no image\n"),
    (
        "second.conf",
        "",
        "[set-state]\nevent = \"write_aio\"\nstate = \"1\"\nnew_state = \"2\"\n\
         [inject-error]\nevent = \"write_aio\"\nstate = \"2\"\n",
    ),
    ("broken.conf", "", "[inject-error]\nevent = \"frob\"\n"),
];

const fn img(args: &'static [&'static str]) -> Case {
    Case { tool: "img", args, input: "", makes: None, expect: Expect::Same }
}

const fn status(args: &'static [&'static str]) -> Case {
    Case { tool: "img", args, input: "", makes: None, expect: Expect::SameStatus }
}

const fn output(args: &'static [&'static str]) -> Case {
    Case { tool: "img", args, input: "", makes: None, expect: Expect::SameOutput }
}

const fn makes(args: &'static [&'static str], file: &'static str) -> Case {
    Case { tool: "img", args, input: "", makes: Some(file), expect: Expect::Same }
}

const fn io(args: &'static [&'static str], input: &'static str) -> Case {
    Case { tool: "io", args, input, makes: None, expect: Expect::Same }
}

/// The table.
pub const CASES: &[Case] = &[
    // Usage errors.
    img(&[]),
    img(&["frobnicate"]),
    img(&["--frobnicate"]),
    img(&["info"]),
    img(&["info", "a", "b"]),
    img(&["info", "--frob", "small.qcow2"]),
    img(&["info", "-f"]),
    img(&["info", "--output", "xml", "small.qcow2"]),
    img(&["info", "-f", "qcow2", "--image-opts", "driver=qcow2,file.filename=small.qcow2"]),
    img(&["info", "missing.qcow2"]),
    img(&["info", "-f", "frob", "small.qcow2"]),
    img(&["info", "-f", "qcow2", "plain.raw"]),
    img(&["info", "frob:x"]),
    // The words about broken JSON are the parser's.
    status(&["info", "json:{"]),
    img(&["info", "json:{\"driver\":\"qcow2\"}"]),
    img(&[
        "info",
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"small.qcow2\"},\"frob\":1}",
    ]),
    img(&["info", "--image-opts", "driver=qcow2,file.filename=small.qcow2,frob=1"]),
    img(&["create"]),
    img(&["create", "-f", "qcow2"]),
    img(&["create", "-f", "qcow2", "new.qcow2"]),
    img(&["create", "-f", "qcow2", "new.qcow2", "12x"]),
    img(&["create", "-f", "qcow2", "new.qcow2", "-1"]),
    img(&["create", "-f", "qcow2", "new.qcow2", "1M", "extra"]),
    img(&["create", "-f", "frob", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "cluster_size=1000", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "cluster_size=4M", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "refcount_bits=3", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "compat=0.10,refcount_bits=8", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "compat=0.10,lazy_refcounts=on", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "compat=0.10,compression_type=zstd", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "compat=frob", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "frob=1", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "lazy_refcounts=maybe", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "preallocation=frob", "new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-b", "small.qcow2", "new.qcow2"]),
    img(&["create", "-f", "qcow2", "-b", "missing.qcow2", "-F", "qcow2", "new.qcow2"]),
    img(&["create", "-f", "qcow2", "-b", "small.qcow2", "-F", "frob", "new.qcow2"]),
    img(&["create", "-f", "qcow2", "-F", "qcow2", "new.qcow2", "1M"]),
    img(&["create", "-f", "raw", "-b", "small.qcow2", "-F", "qcow2", "new.raw", "1M"]),
    img(&["create", "-f", "qcow2", "nodir/new.qcow2", "1M"]),
    img(&["create", "-f", "qcow2", "-o", "help"]),
    img(&["create", "-f", "raw", "-o", "help"]),
    img(&["check"]),
    img(&["check", "a", "b"]),
    img(&["check", "missing.qcow2"]),
    img(&["check", "plain.raw"]),
    img(&["check", "-f", "raw", "plain.raw"]),
    img(&["check", "--output=frob", "small.qcow2"]),
    img(&["check", "-r", "frob", "small.qcow2"]),
    img(&["check", "-T", "frob", "small.qcow2"]),
    img(&["check", "-f", "qcow2", "garbage.bin"]),
    img(&["map"]),
    img(&["map", "--output=frob", "small.qcow2"]),
    img(&["map", "-s", "x", "small.qcow2"]),
    img(&["map", "missing.qcow2"]),
    img(&["compare"]),
    img(&["compare", "a"]),
    img(&["compare", "a", "b", "c"]),
    img(&["compare", "missing.raw", "plain.raw"]),
    img(&["compare", "-T", "frob", "small.qcow2", "plain.raw"]),
    img(&["convert"]),
    img(&["convert", "plain.raw"]),
    img(&["convert", "-O", "frob", "plain.raw", "new"]),
    img(&["convert", "-f", "frob", "plain.raw", "new"]),
    img(&["convert", "missing.raw", "new"]),
    img(&["convert", "-S", "100", "plain.raw", "new"]),
    img(&["convert", "-S", "x", "plain.raw", "new"]),
    img(&["convert", "-m", "17", "plain.raw", "new"]),
    img(&["convert", "-m", "0", "plain.raw", "new"]),
    img(&["convert", "-t", "frob", "plain.raw", "new"]),
    img(&["convert", "-T", "frob", "plain.raw", "new"]),
    img(&["convert", "-c", "-O", "raw", "plain.raw", "new"]),
    img(&["convert", "-n", "plain.raw", "missing.raw"]),
    img(&["convert", "-n", "-O", "qcow2", "longer.raw", "small.qcow2"]),
    img(&["convert", "-n", "-o", "cluster_size=4k", "-O", "qcow2", "plain.raw", "small.qcow2"]),
    img(&["convert", "--target-is-zero", "plain.raw", "new"]),
    img(&["convert", "--target-image-opts", "plain.raw", "driver=raw,file.filename=new"]),
    img(&["convert", "-C", "-c", "-O", "qcow2", "plain.raw", "new"]),
    img(&["convert", "-C", "-S", "4k", "plain.raw", "new"]),
    img(&["convert", "-O", "qcow2", "-B", "small.qcow2", "over.qcow2", "new"]),
    img(&["convert", "-O", "qcow2", "-o", "frob=1", "plain.raw", "new"]),
    img(&["convert", "-O", "qcow2", "-o", "cluster_size=1000", "plain.raw", "new"]),
    img(&["convert", "plain.raw", "nodir/new"]),
    img(&["convert", "-l", "frob", "snap.qcow2", "new"]),
    // What the commands say when all is well.
    img(&["info", "small.qcow2"]),
    img(&["info", "--output=json", "small.qcow2"]),
    img(&["info", "plain.raw"]),
    img(&["info", "--output=json", "plain.raw"]),
    img(&["info", "garbage.bin"]),
    img(&["info", "over.qcow2"]),
    img(&["info", "--output=json", "over.qcow2"]),
    img(&["info", "--backing-chain", "over.qcow2"]),
    img(&["info", "--backing-chain", "--output=json", "over.qcow2"]),
    img(&["info", "overraw.qcow2"]),
    img(&["info", "v2.qcow2"]),
    img(&["info", "lazy.qcow2"]),
    img(&["info", "zstd.qcow2"]),
    img(&["info", "snap.qcow2"]),
    img(&["info", "empty.qcow2"]),
    img(&["info", "-U", "small.qcow2"]),
    img(&["info", "--image-opts", "driver=qcow2,file.filename=small.qcow2"]),
    img(&["info", "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"small.qcow2\"}}"]),
    img(&["info", "file:small.qcow2"]),
    img(&["check", "small.qcow2"]),
    img(&["check", "--output=json", "small.qcow2"]),
    img(&["check", "-q", "small.qcow2"]),
    img(&["check", "over.qcow2"]),
    img(&["check", "comp.qcow2"]),
    img(&["check", "snap.qcow2"]),
    img(&["check", "empty.qcow2"]),
    img(&["check", "v2.qcow2"]),
    img(&["check", "lazy.qcow2"]),
    img(&["check", "leak.qcow2"]),
    img(&["check", "--output=json", "leak.qcow2"]),
    img(&["check", "corrupt.qcow2"]),
    img(&["check", "--output=json", "corrupt.qcow2"]),
    img(&["check", "-q", "corrupt.qcow2"]),
    img(&["map", "small.qcow2"]),
    img(&["map", "--output=json", "small.qcow2"]),
    img(&["map", "over.qcow2"]),
    img(&["map", "--output=json", "over.qcow2"]),
    img(&["map", "hollow.qcow2"]),
    img(&["map", "--output=json", "hollow.qcow2"]),
    img(&["measure", "-O", "qcow2", "hollow.qcow2"]),
    img(&["convert", "-O", "qcow2", "hollow.qcow2", "new"]),
    img(&["map", "--output=json", "overraw.qcow2"]),
    img(&["map", "overraw.qcow2"]),
    img(&["map", "comp.qcow2"]),
    img(&["map", "--output=json", "comp.qcow2"]),
    img(&["map", "--output=json", "-s", "64k", "-l", "200k", "small.qcow2"]),
    img(&["map", "-s", "64k", "-l", "200k", "small.qcow2"]),
    img(&["map", "-s", "4M", "small.qcow2"]),
    img(&["map", "--output=json", "plain.raw"]),
    img(&["map", "plain.raw"]),
    img(&["map", "empty.qcow2"]),
    img(&["map", "--output=json", "empty.qcow2"]),
    img(&["compare", "small.qcow2", "plain.raw"]),
    img(&["compare", "-s", "small.qcow2", "plain.raw"]),
    img(&["compare", "plain.raw", "longer.raw"]),
    img(&["compare", "-s", "plain.raw", "longer.raw"]),
    img(&["compare", "longer.raw", "plain.raw"]),
    img(&["compare", "small.qcow2", "over.qcow2"]),
    img(&["compare", "-q", "small.qcow2", "over.qcow2"]),
    img(&["compare", "-f", "qcow2", "-F", "raw", "small.qcow2", "plain.raw"]),
    img(&["compare", "-f", "raw", "small.qcow2", "plain.raw"]),
    img(&["compare", "comp.qcow2", "zstd.qcow2"]),
    makes(&["create", "-f", "qcow2", "new.qcow2", "1M"], "new.qcow2"),
    makes(&["create", "-f", "qcow2", "new.qcow2", "1000000"], "new.qcow2"),
    makes(&["create", "-q", "-f", "qcow2", "new.qcow2", "1.5G"], "new.qcow2"),
    makes(&["create", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "new.qcow2", "1M"], "new.qcow2"),
    makes(
        &["create", "-f", "qcow2", "-o", "lazy_refcounts=on,refcount_bits=1", "new.qcow2", "1M"],
        "new.qcow2",
    ),
    makes(&["create", "-f", "qcow2", "-o", "compression_type=zstd", "new.qcow2", "1M"], "new.qcow2"),
    makes(&["create", "-f", "qcow2", "-o", "size=2M", "new.qcow2"], "new.qcow2"),
    makes(&["create", "-f", "qcow2", "-b", "small.qcow2", "-F", "qcow2", "new.qcow2"], "new.qcow2"),
    makes(&["create", "-f", "qcow2", "-b", "plain.raw", "-F", "raw", "new.qcow2", "3M"], "new.qcow2"),
    makes(&["create", "-u", "-f", "qcow2", "-b", "missing.raw", "-F", "raw", "new.qcow2", "3M"], "new.qcow2"),
    makes(&["create", "new.raw", "1M"], "new.raw"),
    makes(&["create", "-f", "raw", "new.raw", "1000"], "new.raw"),
    makes(&["create", "-f", "raw", "-o", "preallocation=full", "new.raw", "1M"], "new.raw"),
    makes(&["convert", "plain.raw", "new"], "new"),
    makes(&["convert", "-O", "qcow2", "plain.raw", "new"], "new"),
    makes(&["convert", "-O", "qcow2", "-W", "small.qcow2", "new"], "new"),
    makes(&["convert", "-O", "qcow2", "comp.qcow2", "new"], "new"),
    makes(&["convert", "-O", "qcow2", "zstd.qcow2", "new"], "new"),
    makes(&["convert", "-O", "qcow2", "-S", "0", "plain.raw", "new"], "new"),
    makes(&["convert", "-O", "qcow2", "-o", "cluster_size=4k,compat=0.10", "over.qcow2", "new"], "new"),
    makes(&["convert", "-O", "qcow2", "-B", "small.qcow2", "-F", "qcow2", "over.qcow2", "new"], "new"),
    makes(&["convert", "-f", "raw", "-O", "raw", "plain.raw", "longer.raw", "new"], "new"),
    makes(&["convert", "-n", "-O", "raw", "small.qcow2", "longer.raw"], "longer.raw"),
    // How often progress is shown is nobody's contract.
    status(&["convert", "-p", "-O", "raw", "small.qcow2", "new"]),
    // Help has its own texts; version names both.
    status(&["--help"]),
    status(&["--version"]),
    status(&["info", "--help"]),
    status(&["convert", "--help"]),
    output(&["info", "-q", "small.qcow2"]),
    // The other tool.
    io(&["missing.qcow2"], ""),
    io(&["-f", "frob", "small.qcow2"], ""),
    // The usage text that follows is our own.
    Case { expect: Expect::SameStatus, ..io(&["--frob"], "") },
    Case { expect: Expect::SameStatus, ..io(&["a", "b"], "") },
    io(&["-t", "frob", "small.qcow2"], ""),
    io(&["-f", "qcow2", "small.qcow2"], "read -P 1 0 64k\nread -P 2 0 64k\n"),
    io(&["-f", "qcow2", "small.qcow2"], "read 0 64k\nread -C 0 64k\nread -q 0 64k\n"),
    io(&["-f", "qcow2", "small.qcow2"], "read -v 192k 48\n"),
    io(&["-f", "qcow2", "small.qcow2"], "read\nread 0\nread 0 1 2\nread x 1\nread 0 x\n"),
    io(&["-f", "qcow2", "small.qcow2"], "read 0 2M\nread 2M 512\nwrite 1M 512\n"),
    io(&["-f", "qcow2", "small.qcow2"], "read 100 100\nread 1 1\nwrite -P 7 3 5\nread -v 0 16\n"),
    io(&["-f", "qcow2", "small.qcow2"], "write -P 300 0 512\nwrite -P x 0 512\nwrite -z -P 1 0 512\n"),
    io(
        &["-f", "qcow2", "small.qcow2"],
        "write -u 0 512\nwrite -n 0 512\nwrite -z -u 0 64k\nread -P 0 0 64k\n",
    ),
    io(&["-f", "qcow2", "small.qcow2"], "write -C -P 1 0 1k\nwrite -q 0 1k\nwrite -f 0 1k\n"),
    io(
        &["-f", "qcow2", "small.qcow2"],
        "readv 0 512 512\nreadv 0\nwritev -P 3 0 512 1024\nreadv -P 3 0 1536\n",
    ),
    io(&["-f", "qcow2", "small.qcow2"], "aio_write -P 9 0 512\naio_flush\naio_read -P 9 0 512\naio_flush\n"),
    io(&["-f", "qcow2", "small.qcow2"], "aio_read -P 7 0 512\naio_flush\naio_write -z 0 64k\naio_flush\n"),
    io(
        &["-f", "qcow2", "small.qcow2"],
        "discard 0 64k\nread -P 0 0 64k\ndiscard 0\ndiscard x 1\ndiscard 2M 1\n",
    ),
    io(&["-f", "qcow2", "small.qcow2"], "alloc 0\nalloc 0 1M\nalloc 64k 64k\nalloc 0 x\nalloc\n"),
    io(&["-f", "qcow2", "small.qcow2"], "map\nlength\n"),
    io(&["-f", "qcow2", "over.qcow2"], "map\nalloc 0 1M\nlength\n"),
    io(&["-f", "qcow2", "small.qcow2"], "info\n"),
    io(&["-f", "raw", "plain.raw"], "info\nmap\nlength\n"),
    io(&["-f", "qcow2", "small.qcow2"], "truncate 2M\nlength\nread -P 0 1M 1M\n"),
    io(&["-f", "qcow2", "small.qcow2"], "truncate\ntruncate x\n"),
    io(&["-f", "qcow2", "small.qcow2"], "frob\nhelp frob\nflush\nflush 1\n"),
    io(&["-f", "qcow2", "small.qcow2"], "close\nread 0 512\nclose\nopen small.qcow2\nopen small.qcow2\n"),
    io(&["-r", "-f", "qcow2", "small.qcow2"], "write 0 512\nread -P 1 0 512\n"),
    io(&["-f", "qcow2", "-c", "read 0 512", "-c", "read 0 1k", "small.qcow2"], ""),
    io(&["-f", "qcow2", "-c", "read 0 2M", "-c", "read 0 1k", "small.qcow2"], ""),
    io(&["-f", "qcow2", "-c", "frob", "small.qcow2"], ""),
    io(&["-f", "qcow2", "small.qcow2"], "reopen -r\nwrite 0 512\nreopen -w\nwrite 0 512\nreopen -c none\n"),
    io(
        &["-f", "qcow2", "small.qcow2"],
        "reopen -c none\nread -P 1 0 64k\nwrite -P 8 1k 3k\nreopen -c unsafe\nread -P 8 1k 3k\nreopen -c frob\n\
         reopen -r -w\nreopen x\nreopen -o x=y\nreopen -o read-only=on\nwrite 0 512\nreopen -r -o read-only=on\n\
         reopen -c none -o cache.direct=on\n",
    ),
    io(&["-f", "qcow2", "small.qcow2"], "sleep 1\nsleep x\nquit\nread 0 512\n"),
    io(&["-f", "qcow2", "small.qcow2"], "open -o frob=1 small.qcow2\n"),
    io(&["-f", "qcow2", "snap.qcow2"], "read -P 2 0 64k\nread -P 1 64k 64k\nread -P 0 128k 64k\n"),
    io(&["-f", "qcow2", "comp.qcow2"], "read -P 1 0 64k\nread -P 2 192k 4k\nmap\n"),
    io(&["-f", "qcow2", "zstd.qcow2"], "read -P 1 0 64k\nread -P 2 192k 4k\nmap\n"),
    io(&["small.qcow2"], "length\n"),
    io(&["plain.raw"], "length\nwrite 0 512\n"),
    io(&[], "read 0 512\nlength\nopen small.qcow2\nlength\n"),
    // Rules, limits and breakpoints.
    io(&["blkdebug:second.conf:small.qcow2"], "write 0 4k\nwrite 0 4k\nread -P 1 4k 4k\n"),
    io(&["blkdebug:broken.conf:small.qcow2"], ""),
    io(&["blkdebug:missing.conf:small.qcow2"], ""),
    io(&["blkdebug:small.qcow2"], ""),
    io(&["-f", "raw", "--image-opts", "driver=blkdebug"], ""),
    io(
        &["--image-opts", "driver=qcow2,file.driver=blkdebug,file.image.filename=small.qcow2,file.align=511"],
        "",
    ),
    io(
        &[
            "--image-opts",
            "driver=qcow2,file.driver=blkdebug,file.image.filename=small.qcow2,file.align=4096,\
             file.max-transfer=4096",
        ],
        "read -P 1 0 64k\nwrite -P 3 5 5\nwrite -z 1 70000\nread -P 0 5 69k\nread -P 2 192k 4k\n",
    ),
    io(
        &[
            "--image-opts",
            "driver=qcow2,file.driver=blkdebug,file.image.filename=small.qcow2,\
             file.inject-error.0.event=read_aio,file.inject-error.0.once=on,file.inject-error.0.errno=28",
        ],
        "read 0 4k\nread -P 1 0 4k\n",
    ),
    io(
        &["-f", "qcow2", "blkdebug::small.qcow2"],
        "break write_aio A\naio_write -P 5 0 64k\nwait_break A\nbreak frob B\nresume B\nread -P 2 192k 4k\n\
         resume A\naio_flush\nread -P 5 0 64k\n",
    ),
    io(&["-f", "qcow2", "small.qcow2"], "break read_aio A\nresume A\nremove_break A\n"),
    io(&["blkverify:plain.raw:over.qcow2"], "read 0 128k\n"),
    io(&["blkverify:plain.raw"], ""),
    img(&["info", "blkdebug::small.qcow2"]),
    // Zones, which no device here has.
    io(
        &["-f", "raw", "plain.raw"],
        "zone_report 0 1\nzone_report x 1\nzone_report 0 4294967296\nzone_open 0 512\nzone_append 0 512\nzone_open\n",
    ),
    io(&[], "sigraise 0\nopen\n"),
];
