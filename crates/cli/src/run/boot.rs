//! The files that are loaded into the machine.

use std::fs::File;
use std::io::Read;

use anyhow::{Context as _, Result, anyhow, bail};
use cowbell_block::naming::split_option_list;
use cowbell_machine::{Boot, BootModule, ModuleKind};

use crate::context::usage;
use crate::flags::{Args, run as flags};

/// Reads what the options name; nothing larger than the machine's memory.
///
/// # Errors
/// A file that cannot be read or is too large; nothing to boot.
pub fn load(args: &Args, ram_bytes: u64) -> Result<Boot> {
    let bios = args.value(&flags::BIOS).map(|path| read("firmware", path, ram_bytes)).transpose()?;
    let mut modules = Vec::new();
    let append = args.value(&flags::APPEND);
    if let Some(path) = args.value(&flags::KERNEL) {
        let data = read("kernel", path, ram_bytes)?;
        let bootargs = append.unwrap_or_default().to_owned();
        modules.push(BootModule { kind: Some(ModuleKind::Kernel), data, bootargs });
    } else if append.is_some() {
        return Err(usage("--append without --kernel: a boot module has bootargs of its own"));
    }
    if let Some(path) = args.value(&flags::INITRD) {
        let data = read("initial RAM disk", path, ram_bytes)?;
        modules.push(BootModule { kind: Some(ModuleKind::Ramdisk), data, bootargs: String::new() });
    }
    for list in args.values(&flags::MODULE) {
        modules.push(module(list, ram_bytes)?);
    }
    if bios.is_none() && modules.is_empty() {
        return Err(usage("nothing to boot: --kernel, --bios or --module is missing"));
    }
    Ok(Boot { bios, modules })
}

fn module(list: &str, ram_bytes: u64) -> Result<BootModule> {
    let (mut file, mut kind, mut bootargs) = (None, None, String::new());
    for (key, value) in split_option_list(list) {
        match key {
            "file" => file = Some(value),
            "kind" => kind = Some(module_kind(&value)?),
            "bootargs" => bootargs = value,
            _ => bail!("--module {list}: there is no key '{key}': file, kind and bootargs are known"),
        }
    }
    let path = file.ok_or_else(|| anyhow!("--module {list}: 'file' is missing"))?;
    Ok(BootModule { kind, data: read("boot module", &path, ram_bytes)?, bootargs })
}

fn module_kind(word: &str) -> Result<ModuleKind> {
    match word.strip_prefix("multiboot,").unwrap_or(word) {
        "kernel" => Ok(ModuleKind::Kernel),
        "ramdisk" => Ok(ModuleKind::Ramdisk),
        "module" => Ok(ModuleKind::Module),
        _ => bail!("a boot module is a kernel, a ramdisk or a module, not '{word}'"),
    }
}

fn read(what: &str, path: &str, bytes_max: u64) -> Result<Vec<u8>> {
    let context = || format!("cannot read the {what} '{path}'");
    let mut data = Vec::new();
    let file = File::open(path).with_context(context)?;
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut data).with_context(context)?;
    if data.len() as u64 > bytes_max {
        bail!("the {what} '{path}' is larger than the machine's memory of {bytes_max} bytes");
    }
    Ok(data)
}
