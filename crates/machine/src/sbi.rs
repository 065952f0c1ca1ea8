//! The built-in supervisor binary interface, so that a kernel alone boots.
//!
//! Base, TIME, IPI, RFENCE, HSM, SRST and DBCN, and the legacy console and shutdown. It is called when the hart
//! executes `ecall` in supervisor mode; the whole call counts as that one instruction.

use crate::csr::{ENVCFG_CBCFE, ENVCFG_CBIE, ENVCFG_CBZE, ENVCFG_STCE, interrupt};
use crate::device::Finish;
use crate::hart::{Privilege, RunState};
use crate::machine::Machine;
use crate::port::ConsoleId;
use crate::ram::Stale;

const BASE: u64 = 0x10;
const TIME: u64 = 0x5449_4d45;
const IPI: u64 = 0x0073_5049;
const RFENCE: u64 = 0x5246_4e43;
const HSM: u64 = 0x0048_534d;
const SRST: u64 = 0x5352_5354;
const DBCN: u64 = 0x4442_434e;

/// Version 2.0 of the specification.
const VERSION: u64 = 2 << 24;
/// Our entry would go into the list of implementations; until then, one that is not taken.
const IMPLEMENTATION: u64 = 0xc0b;
/// Bytes one console call moves at most.
const CONSOLE_MAX: u64 = 64 << 10;

/// The error codes of the specification that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SbiError {
    NotSupported = -2,
    InvalidParameter = -3,
    InvalidAddress = -5,
    AlreadyAvailable = -6,
}

type SbiResult = Result<u64, SbiError>;

/// Answers the call of the hart whose turn it is, and moves its pc on.
pub(crate) fn call(machine: &mut Machine) {
    let index = machine.turn().hart;
    let hart = &machine.harts[index];
    let (extension, function) = (hart.reg(17), hart.reg(16));
    let arguments = [10, 11, 12, 13, 14].map(|number| hart.reg(number));
    machine.harts[index].pc = machine.harts[index].pc.wrapping_add(4);
    if extension <= 8 {
        let value = legacy(machine, extension, arguments[0]);
        machine.harts[index].set_reg(10, value);
        return;
    }
    let result = match extension {
        BASE => base(function, arguments[0]),
        TIME if function == 0 => {
            set_timer(machine, arguments[0]);
            Ok(0)
        }
        IPI if function == 0 => send_ipi(machine, arguments[0], arguments[1]),
        RFENCE => remote_fence(machine, function, arguments),
        HSM => hart_state(machine, function, arguments),
        SRST if function == 0 => system_reset(machine, arguments[0], arguments[1]),
        DBCN => debug_console(machine, function, arguments),
        _ => Err(SbiError::NotSupported),
    };
    let (error, value) = match result {
        Ok(value) => (0, value),
        Err(error) => (error as i64 as u64, 0),
    };
    let hart = &mut machine.harts[index];
    hart.set_reg(10, error);
    hart.set_reg(11, value);
}

fn base(function: u64, argument: u64) -> SbiResult {
    Ok(match function {
        0 => VERSION,
        1 => IMPLEMENTATION,
        2 => 1,
        3 => u64::from(matches!(argument, BASE | TIME | IPI | RFENCE | HSM | SRST | DBCN | 0..=8)),
        4..=6 => 0,
        _ => return Err(SbiError::NotSupported),
    })
}

fn legacy(machine: &mut Machine, extension: u64, argument: u64) -> u64 {
    match extension {
        0 => set_timer(machine, argument),
        1 => machine.bus.ports.console.write(ConsoleId::Uart, &[argument as u8]),
        // Input goes through the UART's own driver.
        2 => return u64::MAX,
        8 => machine.bus.finish = Some(Finish::PowerOff(0)),
        _ => {}
    }
    0
}

fn set_timer(machine: &mut Machine, ticks: u64) {
    let index = machine.turn().hart;
    machine.harts[index].csr.stimecmp = ticks;
}

/// The harts that a mask names, or all of them.
fn masked(machine: &Machine, mask: u64, base: u64) -> Result<Vec<usize>, SbiError> {
    let count = machine.harts.len() as u64;
    if base == u64::MAX {
        return Ok((0..count as usize).collect());
    }
    (0..64)
        .filter(|bit| mask >> bit & 1 != 0)
        .map(|bit| match base.checked_add(bit) {
            Some(hart) if hart < count => Ok(hart as usize),
            _ => Err(SbiError::InvalidParameter),
        })
        .collect()
}

fn send_ipi(machine: &mut Machine, mask: u64, base: u64) -> SbiResult {
    for hart in masked(machine, mask, base)? {
        machine.harts[hart].csr.mip |= interrupt::SSI;
    }
    Ok(0)
}

/// Translations are kept coherent, so that a remote fence only has to be a legal request.
fn remote_fence(machine: &mut Machine, function: u64, arguments: [u64; 5]) -> SbiResult {
    if function > 2 {
        return Err(SbiError::NotSupported);
    }
    for hart in masked(machine, arguments[0], arguments[1])? {
        if function > 0 {
            machine.harts[hart].tlb.drop_stale(Stale::All);
        }
    }
    Ok(0)
}

fn hart_state(machine: &mut Machine, function: u64, arguments: [u64; 5]) -> SbiResult {
    let current = machine.turn().hart;
    match function {
        0 => {
            let target = machine.harts.get_mut(arguments[0] as usize).ok_or(SbiError::InvalidParameter)?;
            if target.run_state != RunState::Stopped {
                return Err(SbiError::AlreadyAvailable);
            }
            prepare_supervisor(target);
            target.pc = arguments[1];
            target.set_reg(10, arguments[0]);
            target.set_reg(11, arguments[2]);
            target.run_state = RunState::Started;
            Ok(0)
        }
        1 => {
            machine.harts[current].run_state = RunState::Stopped;
            Ok(0)
        }
        2 => match machine.harts.get(arguments[0] as usize).ok_or(SbiError::InvalidParameter)?.run_state {
            RunState::Started | RunState::Waiting => Ok(0),
            RunState::Stopped => Ok(1),
        },
        // The default retentive suspend is `wfi`.
        3 if arguments[0] == 0 => {
            machine.harts[current].run_state = RunState::Waiting;
            Ok(0)
        }
        _ => Err(SbiError::NotSupported),
    }
}

fn system_reset(machine: &mut Machine, kind: u64, reason: u64) -> SbiResult {
    machine.bus.finish = Some(match kind {
        0 => Finish::PowerOff(u16::from(reason != 0)),
        1 | 2 => Finish::Reset,
        _ => return Err(SbiError::InvalidParameter),
    });
    Ok(0)
}

fn debug_console(machine: &mut Machine, function: u64, arguments: [u64; 5]) -> SbiResult {
    match function {
        0 => {
            let len = arguments[0].min(CONSOLE_MAX);
            let mut bytes = vec![0; len as usize];
            if arguments[2] != 0 || !machine.bus.ram.read(arguments[1], &mut bytes) {
                return Err(SbiError::InvalidAddress);
            }
            machine.bus.ports.console.write(ConsoleId::Uart, &bytes);
            Ok(len)
        }
        // Input goes through the UART's own driver.
        1 => Ok(0),
        2 => {
            machine.bus.ports.console.write(ConsoleId::Uart, &[arguments[0] as u8]);
            Ok(0)
        }
        _ => Err(SbiError::NotSupported),
    }
}

/// Puts a hart into supervisor mode as firmware hands it over: everything delegated, counters and cache operations
/// open, memory unprotected.
pub(crate) fn prepare_supervisor(hart: &mut crate::hart::Hart) {
    let csr = &mut hart.csr;
    csr.medeleg = 0xb1ff;
    csr.mideleg = interrupt::SUPERVISOR;
    csr.mcounteren = 7;
    // Without an SBI PMU the kernel leaves this alone, and `rdtime` in its vDSO needs it.
    csr.scounteren = 7;
    csr.menvcfg = ENVCFG_STCE | ENVCFG_CBZE | ENVCFG_CBCFE | ENVCFG_CBIE;
    csr.satp = 0;
    csr.mstatus = crate::csr::Mstatus(0);
    csr.pmp.set_address(0, u64::MAX);
    csr.pmp.set_config(0, 0x1f);
    hart.privilege = Privilege::S;
    hart.tlb.flush();
    hart.update_modes();
}
