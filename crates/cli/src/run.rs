//! `run`: a machine with disks, a console, and perhaps a debugger.
//!
//! | module | duty |
//! |---|---|
//! | [`boot`] | the files that are loaded into the machine |
//! | [`drives`] | the disks |
//! | [`socket`] | addresses: listening, connecting |
//! | [`channel`] | where a console leads |
//! | [`front`] | the machine's surroundings: consoles, debugger, signals, waiting |
//! | [`values`] | forms of option values |

mod boot;
mod channel;
mod drives;
mod front;
mod socket;
mod values;

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use cowbell_host::{block_on, signal, usage};
use cowbell_machine::{Finish, Idle, MachineConfig};
use cowbell_vm::vm::Start;
use cowbell_vm::{End, Vm, Wish, summary};

use crate::context::{Context, usage as bad_usage};
use crate::flags::parse::{Order, parse};
use crate::flags::{Args, img, run as flags};
use crate::open::Image;
use crate::out::{Out, complain};
use front::Front;

/// Runs the command.
///
/// # Errors
/// Reported by the caller, with status 1.
pub fn run(cx: &mut Context, args: Vec<String>) -> Result<u8> {
    let args = flags::with_two_dashes(args);
    let args = parse(&flags::RUN, cx.face, Order::Permute, args).map_err(|error| bad_usage(error.text()))?;
    if args.has(&img::HELP) {
        Out::new().put(&cx.help(&flags::RUN));
        return Ok(0);
    }
    cx.take_policy(&args)?;
    // One executor for all: requests that the machine submits find the thread's ring.
    block_on(async { drive(cx, &args).await })
}

/// One line for an error and its causes; a usage error has none and stays what it is.
fn causes_in_line(error: anyhow::Error) -> anyhow::Error {
    if error.chain().count() == 1 { error } else { anyhow!("{error:#}") }
}

async fn drive(cx: &Context, args: &Args) -> Result<u8> {
    let mut config = configuration(args)?;
    let limit = args.value(&flags::LIMIT).map(|text| values::count("--limit", text)).transpose()?;
    let boot = boot::load(args, config.ram_bytes).map_err(causes_in_line)?;
    let consoles = channel::Choice::of(args).map_err(causes_in_line)?;
    let debugger = front::debugger_address(args).map_err(causes_in_line)?;
    let images = drives::open_all(cx, args).await?;
    let drives = images.iter().map(|image| image.drive.clone()).collect();
    let notice: cowbell_vm::disk::Notice = {
        let name = cx.name.clone();
        Arc::new(move |line: &str| complain(format_args!("{name}: {line}")))
    };
    let mut front = Front::new(consoles, debugger).map_err(causes_in_line)?;
    config.idle = idle(args, &front);
    let ended = Vm::new(&config, &boot, drives, front.console(), &notice)
        .map_err(|error| causes_in_line(anyhow!(error)));
    let ended = ended.and_then(|mut vm| {
        if !args.has(&flags::NO_REBOOT) {
            vm.set_restart(config, boot);
        }
        if let Some(limit) = limit {
            vm.set_limit(limit);
        }
        go(args, vm, &mut front).map_err(causes_in_line)
    });
    drop(front);
    let closed = close_all(images.into_iter().map(|image| image.image).collect()).await;
    let status = status(cx, ended?);
    closed?;
    Ok(status)
}

/// Runs the machine, and writes the summary.
fn go(args: &Args, mut vm: Vm, front: &mut Front) -> Result<End> {
    signal::catch_interrupts()?;
    front.open()?;
    let start = if args.has(&flags::STOPPED) { Start::Stopped } else { Start::Running };
    let before = usage::cpu_time();
    let end = vm.run(start, front)?;
    let cpu = usage::cpu_time().saturating_sub(before);
    front.close();
    if let Some(path) = args.value(&flags::SUMMARY) {
        let cpu_ns = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        let text = format!("{:#}\n", summary::summary(vm.machine(), end, cpu_ns));
        std::fs::write(path, text).with_context(|| format!("cannot write the summary to '{path}'"))?;
    }
    Ok(end)
}

fn configuration(args: &Args) -> Result<MachineConfig> {
    let mut config = MachineConfig::default();
    if let Some(text) = args.value(&flags::MACHINE).filter(|text| *text != "virt") {
        return Err(anyhow!("there is no board '{text}': the only one is virt"));
    }
    if let Some(text) = args.value(&flags::MEMORY) {
        config.ram_bytes = values::memory(text)?;
    }
    if let Some(text) = args.value(&flags::SMP) {
        config.harts = usize::try_from(values::count("--smp", text)?).unwrap_or(usize::MAX);
    }
    if let Some(text) = args.value(&flags::SHIFT) {
        config.shift = u32::try_from(values::count("--shift", text)?).unwrap_or(u32::MAX);
    }
    if let Some(text) = args.value(&flags::SEED) {
        config.seed = values::count("--seed", text)?;
    }
    if let Some(text) = args.value(&flags::RTC) {
        config.rtc_start_ns = values::rtc_base(text)?;
    }
    if args.has(&flags::STOPPED) && !args.has(&flags::GDB) && !args.has(&flags::GDB_DEFAULT) {
        return Err(bad_usage("-S without --gdb or -s: nobody could ever start the machine"));
    }
    if let Some(text) = args.value(&flags::IDLE).filter(|text| !["warp", "real"].contains(text)) {
        return Err(anyhow!("--idle takes warp or real, not '{text}'"));
    }
    config.check(0)?;
    Ok(config)
}

/// Time is lived where somebody may type at any moment of it.
fn idle(args: &Args, front: &Front) -> Idle {
    match args.value(&flags::IDLE) {
        Some("real") => Idle::Real,
        None if front.is_interactive() => Idle::Real,
        _ => Idle::Warp,
    }
}

/// Closes every image, also when one of them fails.
async fn close_all(images: Vec<Image>) -> Result<()> {
    let mut result = Ok(());
    for image in images {
        let closed = image.close().await;
        result = result.and(closed);
    }
    Ok(result?)
}

fn status(cx: &Context, end: End) -> u8 {
    match end {
        End::Finished(Finish::PowerOff(code)) => u8::try_from(code).unwrap_or(u8::MAX),
        End::Finished(Finish::Reset) => {
            cx.report("the guest asked for a reset: the run ends here");
            0
        }
        End::Limit | End::Killed | End::Wished(Wish::Quit) => 0,
        End::Asleep => {
            cx.report("the guest waits for something that cannot come");
            1
        }
        End::Wished(Wish::Interrupted) => {
            cx.report("interrupted");
            1
        }
        End::Wished(Wish::ConsoleGone) => {
            cx.report("the console's output cannot be written any more");
            1
        }
    }
}
