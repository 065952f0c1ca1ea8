//! Debian's packages for riscv64, from the mirror that this host's apt uses.
//!
//! apt works in a directory of its own with a list of its own, so that the host's configuration, lists and packages
//! stay as they are. What is there already is used without asking the network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The first release with riscv64.
const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Beside the kernel, whose name has its version in it.
const OTHERS: [&str; 2] = ["busybox-static", "opensbi"];
/// Depends on the newest kernel.
const KERNEL: &str = "linux-image-riscv64";

/// The packages, unpacked.
pub struct Packages {
    /// The root of a file system with their files.
    pub root: PathBuf,
    /// Name, version and SHA-256 of each, a line each.
    pub manifest: String,
}

/// The packages from the cache, else from the mirror; or why they cannot be had.
pub fn packages(cache: &Path) -> Result<std::result::Result<Packages, String>> {
    let manifest = cache.join("manifest.txt");
    let root = cache.join("root");
    if let Ok(manifest) = fs::read_to_string(&manifest) {
        return Ok(Ok(Packages { root, manifest }));
    }
    for tool in ["apt-get", "apt-cache", "dpkg-deb", "sha256sum", "xz", "mke2fs", "e2fsck", "debugfs"] {
        if !is_installed(tool) {
            return Ok(Err(format!("no Linux guest: {tool} is not installed")));
        }
    }
    let files = match download(cache) {
        Ok(files) => files,
        Err(why) => return Ok(Err(format!("no Linux guest: it is not in the cache, and {why:#}"))),
    };
    let mut text = String::new();
    for file in &files {
        unpack(file, &root)?;
        text.push_str(&describe(file)?);
    }
    // Last, and whole: it says that all is there.
    let unfinished = cache.join("manifest.txt.new");
    fs::write(&unfinished, &text)?;
    fs::rename(&unfinished, &manifest)?;
    Ok(Ok(Packages { root, manifest: text }))
}

/// Installs what the checks need and this host has not, where that is possible; else the checks say what they leave out.
pub fn install_tools() {
    const PACKAGES: [(&str, &str); 4] = [
        ("gdb-multiarch", "gdb-multiarch"),
        ("xz", "xz-utils"),
        ("mke2fs", "e2fsprogs"),
        ("debugfs", "e2fsprogs"),
    ];
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(tool, _)| !is_installed(tool)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return;
    }
    println!("installing {}", missing.join(" "));
    let install = |args: &[&str]| {
        output(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
    };
    let args = [&["install", "-y", "--no-install-recommends"], missing.as_slice()].concat();
    if let Err(why) = install(&["update"]).and_then(|()| install(&args)) {
        println!("not installed: {why:#}");
    }
}

fn is_installed(tool: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&paths).chain(sbin).any(|directory: PathBuf| directory.join(tool).is_file())
}

fn download(cache: &Path) -> Result<Vec<PathBuf>> {
    let apt = Apt::prepare(cache)?;
    apt.call("apt-get", &["update"])?;
    let depends = apt.call("apt-cache", &["depends", KERNEL])?;
    let kernel = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{KERNEL} depends on no kernel"))?;
    let packages = apt.directory.join("packages");
    let _ = fs::remove_dir_all(&packages);
    fs::create_dir_all(&packages)?;
    let mut names = vec![kernel.to_owned()];
    names.extend(OTHERS.map(str::to_owned));
    let mut args = vec!["download"];
    args.extend(names.iter().map(String::as_str));
    apt.call_in("apt-get", &args, &packages)?;
    let mut files: Vec<PathBuf> =
        fs::read_dir(&packages)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    if files.len() != names.len() {
        bail!("apt-get gave {} packages of {}", files.len(), names.len());
    }
    Ok(files)
}

/// apt with a list, a state and a cache of its own.
struct Apt {
    directory: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn prepare(cache: &Path) -> Result<Self> {
        let directory = cache.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let list = directory.join("sources.list");
        let mirror = mirror()?;
        fs::write(&list, format!("deb [arch=riscv64 signed-by={KEYRING}] {mirror} {SUITE} main\n"))?;
        let path = directory.display();
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".into(),
            format!("Dir::State::Lists={path}/lists"),
            format!("Dir::Cache={path}"),
            "Dir::State::status=/dev/null".into(),
            "APT::Architecture=riscv64".into(),
            "APT::Architectures=riscv64".into(),
            "APT::Sandbox::User=root".into(),
            "Acquire::Retries=2".into(),
            "Acquire::http::Timeout=30".into(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        Ok(Self { directory, options })
    }

    fn call(&self, program: &str, args: &[&str]) -> Result<String> {
        self.call_in(program, args, &self.directory)
    }

    fn call_in(&self, program: &str, args: &[&str], directory: &Path) -> Result<String> {
        let mut command = Command::new(program);
        output(command.args(&self.options).args(args).current_dir(directory))
    }
}

/// The address of the archive, from the host's own configuration.
fn mirror() -> Result<String> {
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    let mirror = targets.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    mirror.map(str::to_owned).context("this host's apt knows no Debian mirror")
}

fn unpack(package: &Path, root: &Path) -> Result<()> {
    output(Command::new("dpkg-deb").arg("-x").arg(package).arg(root)).map(drop)
}

fn describe(package: &Path) -> Result<String> {
    let fields = output(Command::new("dpkg-deb").arg("-W").arg(package))?;
    let sum = output(Command::new("sha256sum").arg(package))?;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    Ok(format!("{} {digest}\n", fields.trim_end().replace('\t', " ")))
}

/// What a program printed; its errors when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        bail!("{:?}: {}: {last}", command.get_program(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
