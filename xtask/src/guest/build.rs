//! What the kernel starts with: a RAM disk with a shell and the modules that a disk needs, and a disk with ext4.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Guest;
use super::fetch::{Packages, output};

/// The modules, in the order in which they are loaded: each needs only what stands before it. (The kernel has the rest
/// of virtio built in.)
const MODULES: [&str; 8] =
    ["virtio_mmio", "virtio_blk", "crc16", "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4"];

/// By a word on the kernel's command line: `bench=` something is done and the machine switched off; `auto` works with the
/// disk and does the same, with no input at all. Otherwise a shell.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
case $(/bin/busybox cat /proc/cmdline) in
*bench=boot*) echo bench booted; /bin/busybox poweroff -f ;;
*bench=fork*)
    i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i+1)); done
    echo bench forked $i; /bin/busybox poweroff -f ;;
esac
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt && cat /mnt/hello
if grep -q auto /proc/cmdline; then
    sh /mnt/auto
    umount /mnt
    poweroff -f
fi
exec setsid cttyhack sh </dev/ttyS0 >/dev/ttyS0 2>&1
";

/// What `auto` does: processes, floating point, files, time.
const AUTO: &str = "echo auto began
i=0; while [ $i -lt 20 ]; do /bin/busybox true; i=$((i+1)); done
awk 'BEGIN { for (i = 1; i < 2000; i++) s += 1 / i; print s }'
seq 1 20000 | md5sum
dd if=/dev/urandom of=/mnt/random bs=64k count=16 2>/dev/null && sync && md5sum /mnt/random
sleep 3
cut -d. -f1 /proc/uptime
echo auto ended
";

/// Makes RAM disk and disk from the packages; what is there already stays.
pub fn guest(program: &Path, cache: &Path, packages: &Packages) -> Result<Guest> {
    let version = kernel_version(&packages.root)?;
    let guest = Guest {
        kernel: packages.root.join("boot").join(format!("vmlinux-{version}")),
        firmware: packages.root.join("usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"),
        initrd: cache.join("initrd"),
        disk: cache.join("disk.qcow2"),
        manifest: packages.manifest.clone(),
    };
    fs::write(&guest.initrd, initrd(packages, &version)?)?;
    disk(program, cache, &guest.disk)?;
    Ok(guest)
}

fn kernel_version(root: &Path) -> Result<String> {
    for entry in fs::read_dir(root.join("boot")).context("the unpacked kernel")? {
        let name = entry?.file_name();
        if let Some(version) = name.to_str().and_then(|name| name.strip_prefix("vmlinux-")) {
            return Ok(version.to_owned());
        }
    }
    bail!("the kernel's package holds no boot/vmlinux-*")
}

fn initrd(packages: &Packages, version: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "mnt", "modules", "proc", "sys"] {
        archive.member(directory, 0o040_755, &[]);
    }
    archive.member("init", 0o100_755, INIT.as_bytes());
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| packages.root.join(path));
    let busybox = busybox.iter().find(|path| path.is_file()).context("the package holds no busybox")?;
    archive.member("bin/busybox", 0o100_755, &fs::read(busybox)?);
    let modules = packages.root.join("usr/lib/modules").join(version).join("kernel");
    let builtin = fs::read_to_string(modules.with_file_name("modules.builtin"))?;
    let mut order = String::new();
    for name in MODULES {
        match find_module(&modules, name)? {
            Some(path) => {
                archive.member(&format!("modules/{name}.ko"), 0o100_644, &uncompressed(&path)?);
                order.push_str(name);
                order.push('\n');
            }
            None if builtin.lines().any(|line| line.ends_with(&format!("/{name}.ko"))) => {}
            None => bail!("the kernel has no module {name}, and it is not built in"),
        }
    }
    archive.member("modules/order", 0o100_644, order.as_bytes());
    archive.member("TRAILER!!!", 0, &[]);
    Ok(archive.0)
}

fn find_module(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
        if path.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if file == format!("{name}.ko.xz") || file == format!("{name}.ko") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let unpacked = Command::new("xz").arg("-dc").arg(path).output().context("starting xz")?;
    if !unpacked.status.success() {
        bail!("xz -dc {}: {}", path.display(), unpacked.status);
    }
    Ok(unpacked.stdout)
}

/// A `newc` archive of cpio, with numbers instead of dates.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn member(&mut self, name: &str, mode: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).expect("a guest's file has less than 4 GiB");
        let name_len = name.len() as u32 + 1;
        let fields = [0, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        let out = &mut self.0;
        out.extend(b"070701");
        out.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// Makes the disk anew: 64 MiB of ext4 on qcow2, the same each time but for what mke2fs draws by lot, which is fixed too.
fn disk(program: &Path, cache: &Path, target: &Path) -> Result<()> {
    let content = cache.join("content");
    fs::create_dir_all(&content)?;
    fs::write(content.join("hello"), "hello from ext4\n")?;
    fs::write(content.join("auto"), AUTO)?;
    let raw = cache.join("disk.raw");
    let _ = fs::remove_file(&raw);
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-E", "root_owner=0:0,hash_seed=6d617463-6865-6420-6265-6c6c73000000"]);
    make.args(["-U", "636f7762-656c-6c00-0000-000000000001", "-d"]).arg(&content).arg(&raw).arg("64M");
    make.env("PATH", path_with_sbin()).env("E2FSPROGS_FAKE_TIME", "1767225600");
    output(&mut make)?;
    let mut convert = Command::new(program);
    output(convert.args(["img", "convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(target))?;
    fs::remove_file(&raw)?;
    Ok(())
}

/// The tools of file systems lie where only administrators look.
pub fn path_with_sbin() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
