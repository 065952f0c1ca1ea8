//! Reading and writing registers by number: which exist, who may, and what a write does besides.

use super::*;
use crate::clock::Clock;
use crate::hart::{Hart, Privilege};

/// What an instruction does with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    Read,
    /// Writes, and perhaps reads.
    Write,
}

/// What must follow a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrEffect {
    /// Nothing.
    None,
    /// Interrupts may be pending or enabled that were not, or a timer moved.
    Interrupts,
    /// Every translation may be stale.
    Translations,
}

/// The register does not exist, or not for this privilege: an illegal instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

const MISA: u64 = 2 << 62 | extension(b"IMAFDCSUB");
const MEDELEG: u64 = 0xb3ff;
/// FIOM and the cache-block bits.
const ENVCFG: u64 = 1 | ENVCFG_CBIE | ENVCFG_CBCFE | ENVCFG_CBZE;

const fn extension(letters: &[u8]) -> u64 {
    let (mut bits, mut at) = (0, 0);
    while at < letters.len() {
        bits |= 1 << (letters[at] - b'A');
        at += 1;
    }
    bits
}

fn permit(hart: &Hart, number: u16, access: Access) -> Result<(), Refused> {
    let needed = number >> 8 & 3;
    if (hart.privilege as u16) < needed || (number >> 10 == 3 && access == Access::Write) {
        return Err(Refused);
    }
    let csr = &hart.csr;
    let allowed = match number {
        FFLAGS | FRM | FCSR => csr.mstatus.fs() != 0,
        0xc00..=0xc1f => counter_allowed(hart, number & 31),
        SATP => !(hart.privilege == Privilege::S && csr.mstatus.tvm()),
        STIMECMP => hart.privilege == Privilege::M || (csr.has_stimecmp() && csr.mcounteren & 2 != 0),
        _ => true,
    };
    if allowed { Ok(()) } else { Err(Refused) }
}

fn counter_allowed(hart: &Hart, index: u16) -> bool {
    let machine = hart.csr.mcounteren >> index & 1 != 0;
    let supervisor = hart.csr.scounteren >> index & 1 != 0;
    match hart.privilege {
        Privilege::M => true,
        Privilege::S => machine,
        Privilege::U => machine && supervisor,
    }
}

/// Reads a register as the hart's privilege sees it.
///
/// # Errors
/// When there is no such register, or it may not be accessed like that.
pub fn read(hart: &Hart, clock: &Clock, number: u16, access: Access) -> Result<u64, Refused> {
    permit(hart, number, access)?;
    match number {
        CYCLE | MCYCLE => Ok(clock.now().wrapping_add(hart.csr.cycle_offset)),
        TIME => Ok(clock.ticks()),
        INSTRET | MINSTRET => Ok(clock.count.wrapping_add(hart.csr.instret_offset)),
        _ => read_timeless(&hart.csr, number),
    }
}

/// Reads a register that may be read and has nothing to do with the clock.
fn read_timeless(csr: &CsrFile, number: u16) -> Result<u64, Refused> {
    Ok(match number {
        FFLAGS => csr.fflags.into(),
        FRM => csr.frm.into(),
        FCSR => u64::from(csr.frm) << 5 | u64::from(csr.fflags),
        SSTATUS => csr.mstatus.read() & (Mstatus::SUPERVISOR | Mstatus::SD | 3 << 32),
        SIE => csr.mie & csr.mideleg,
        STVEC => csr.stvec,
        SCOUNTEREN => csr.scounteren,
        SENVCFG => csr.senvcfg,
        SSCRATCH => csr.sscratch,
        SEPC => csr.sepc,
        SCAUSE => csr.scause,
        STVAL => csr.stval,
        SIP => csr.pending() & csr.mideleg,
        STIMECMP => csr.stimecmp,
        SATP => csr.satp,
        MVENDORID | MARCHID | MIMPID | MCONFIGPTR | MCOUNTINHIBIT => 0,
        MHARTID => csr.mhartid,
        MSTATUS => csr.mstatus.read(),
        super::MISA => MISA,
        super::MEDELEG => csr.medeleg,
        MIDELEG => csr.mideleg,
        MIE => csr.mie,
        MTVEC => csr.mtvec,
        MCOUNTEREN => csr.mcounteren,
        MENVCFG => csr.menvcfg,
        MSCRATCH => csr.mscratch,
        MEPC => csr.mepc,
        MCAUSE => csr.mcause,
        MTVAL => csr.mtval,
        MIP => csr.pending(),
        0x3a0 | 0x3a2 => csr.pmp.config((number - PMPCFG0) as usize * 4),
        0x3b0..=0x3bf => csr.pmp.address((number - PMPADDR0) as usize),
        // The hardware performance monitor: there, and always zero.
        0xb03..=0xb1f | 0xc03..=0xc1f | 0x323..=0x33f => 0,
        _ => return Err(Refused),
    })
}

/// The value that `csrrs` and `csrrc` modify. It differs from what they read in `mip`, whose device lines must not
/// be turned into software's bits.
pub(crate) fn modify_base(hart: &Hart, number: u16, value: u64) -> u64 {
    match number {
        MIP => hart.csr.mip,
        SIP => hart.csr.mip & hart.csr.mideleg,
        _ => value,
    }
}

/// Registers that supervisors use all the time, and whose writing has no effect besides but for one bit.
pub(crate) const fn is_quiet(number: u16) -> bool {
    matches!(number, SSTATUS | SSCRATCH | SEPC | SCAUSE | STVAL)
}

/// Exchanges the value of such a register for what `modify` makes of it, if that is a new one. `None`, and nothing done,
/// when it may not be accessed, or the write would let interrupts in.
#[inline]
pub(crate) fn exchange_quietly(
    hart: &mut Hart,
    number: u16,
    modify: impl FnOnce(u64) -> Option<u64>,
) -> Option<u64> {
    if hart.privilege == Privilege::U {
        return None;
    }
    let old = read_timeless(&hart.csr, number).ok()?;
    if let Some(new) = modify(old) {
        if number == SSTATUS && new & !old & Mstatus::SIE != 0 {
            return None;
        }
        write_timeless(hart, number, new).ok()?;
    }
    Some(old)
}

/// Writes a register; bits that cannot be written keep their value, as WARL fields do.
///
/// # Errors
/// When there is no such register, or it may not be written.
pub fn write(hart: &mut Hart, clock: &Clock, number: u16, value: u64) -> Result<CsrEffect, Refused> {
    permit(hart, number, Access::Write)?;
    match number {
        // The instruction that writes is counted after the write: the next one reads what was written.
        MCYCLE => hart.csr.cycle_offset = value.wrapping_sub(clock.now() + 1),
        MINSTRET => hart.csr.instret_offset = value.wrapping_sub(clock.count + 1),
        _ => return write_timeless(hart, number, value),
    }
    Ok(CsrEffect::None)
}

/// Writes a register that may be written and has nothing to do with the clock.
fn write_timeless(hart: &mut Hart, number: u16, value: u64) -> Result<CsrEffect, Refused> {
    let csr = &mut hart.csr;
    match number {
        FFLAGS | FRM | FCSR => {
            match number {
                FFLAGS => csr.fflags = value as u8 & 31,
                FRM => csr.frm = value as u8 & 7,
                _ => (csr.fflags, csr.frm) = (value as u8 & 31, (value >> 5) as u8 & 7),
            }
            csr.mstatus.0 |= Mstatus::FS;
            hart.float_ready = true;
        }
        SSTATUS => return Ok(write_status(hart, value, Mstatus::SUPERVISOR)),
        MSTATUS => return Ok(write_status(hart, value, Mstatus::WRITABLE | Mstatus::MPP)),
        SIE => {
            csr.mie = csr.mie & !csr.mideleg | value & csr.mideleg;
            return Ok(CsrEffect::Interrupts);
        }
        MIE => {
            use interrupt::*;
            csr.mie = value & (SSI | MSI | STI | MTI | SEI | MEI);
            return Ok(CsrEffect::Interrupts);
        }
        SIP => {
            let mask = csr.mideleg & interrupt::SSI;
            csr.mip = csr.mip & !mask | value & mask;
            return Ok(CsrEffect::Interrupts);
        }
        MIP => {
            let timer = if csr.has_stimecmp() { 0 } else { interrupt::STI };
            let mask = interrupt::SSI | interrupt::SEI | timer;
            csr.mip = csr.mip & !mask | value & mask;
            return Ok(CsrEffect::Interrupts);
        }
        MIDELEG => {
            csr.mideleg = value & interrupt::SUPERVISOR;
            return Ok(CsrEffect::Interrupts);
        }
        STIMECMP => {
            csr.stimecmp = value;
            return Ok(CsrEffect::Interrupts);
        }
        MENVCFG => {
            csr.menvcfg = envcfg(csr.menvcfg, value, ENVCFG | ENVCFG_STCE);
            if csr.has_stimecmp() {
                csr.mip &= !interrupt::STI;
            }
            return Ok(CsrEffect::Interrupts);
        }
        SATP => {
            // An unknown mode leaves the whole register as it was.
            if !matches!(value >> 60, 0 | 8 | 9 | 10) || value == csr.satp {
                return Ok(CsrEffect::None);
            }
            csr.satp = value & !(0xf << 56) | value & 0xf << 56;
            return Ok(CsrEffect::Translations);
        }
        STVEC => csr.stvec = vector(csr.stvec, value),
        MTVEC => csr.mtvec = vector(csr.mtvec, value),
        SCOUNTEREN => csr.scounteren = value & 7,
        MCOUNTEREN => csr.mcounteren = value & 7,
        SENVCFG => csr.senvcfg = envcfg(csr.senvcfg, value, ENVCFG),
        SSCRATCH => csr.sscratch = value,
        SEPC => csr.sepc = value & !1,
        SCAUSE => csr.scause = value,
        STVAL => csr.stval = value,
        MSCRATCH => csr.mscratch = value,
        MEPC => csr.mepc = value & !1,
        MCAUSE => csr.mcause = value,
        MTVAL => csr.mtval = value,
        super::MEDELEG => csr.medeleg = value & MEDELEG,
        super::MISA | MCOUNTINHIBIT | 0xb03..=0xb1f | 0x323..=0x33f => {}
        0x3a0 | 0x3a2 => {
            csr.pmp.set_config((number - PMPCFG0) as usize * 4, value);
            return Ok(CsrEffect::Translations);
        }
        0x3b0..=0x3bf => {
            csr.pmp.set_address((number - PMPADDR0) as usize, value);
            return Ok(CsrEffect::Translations);
        }
        _ => return Err(Refused),
    }
    Ok(CsrEffect::None)
}

fn write_status(hart: &mut Hart, value: u64, mask: u64) -> CsrEffect {
    let old = hart.csr.mstatus.0;
    let mut new = old & !mask | value & mask;
    if new & Mstatus::MPP == 2 << 11 {
        new = new & !Mstatus::MPP | old & Mstatus::MPP;
    }
    hart.csr.mstatus = Mstatus(new);
    hart.update_modes();
    // Disabling never lets an interrupt in.
    if new & !old & (Mstatus::SIE | Mstatus::MIE) != 0 { CsrEffect::Interrupts } else { CsrEffect::None }
}

fn vector(old: u64, value: u64) -> u64 {
    if value & 3 > 1 { value & !3 | old & 3 } else { value }
}

/// `CBIE` = 2 is reserved and keeps the old value.
fn envcfg(old: u64, value: u64, mask: u64) -> u64 {
    let keep = if value & ENVCFG_CBIE == 2 << 4 { ENVCFG_CBIE } else { 0 };
    value & mask & !keep | old & keep
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(privilege: Privilege, number: u16, value: u64, expect: Result<u64, Refused>) {
        let mut hart = Hart::new(0);
        hart.privilege = privilege;
        let clock = Clock::default();
        let got =
            write(&mut hart, &clock, number, value).and_then(|_| read(&hart, &clock, number, Access::Read));
        assert_eq!(got, expect, "{}", Name(number));
    }

    #[test]
    fn fields_keep_what_may_not_be_written() {
        let m = Privilege::M;
        check(m, MSTATUS, u64::MAX, Ok(Mstatus::WRITABLE | Mstatus::MPP | Mstatus::XLEN | Mstatus::SD));
        check(m, MSTATUS, 2 << 11, Ok(Mstatus::XLEN));
        check(m, MEDELEG_NUMBER, u64::MAX, Ok(0xb3ff));
        check(m, MIDELEG, u64::MAX, Ok(0x222));
        check(m, MEPC, 7, Ok(6));
        check(m, MTVEC, 0x8000_0003, Ok(0x8000_0000));
        check(m, SATP, 7 << 60 | 5, Ok(0));
        check(m, SATP, 8 << 60 | 0xffff << 44 | 5, Ok(8 << 60 | 0xffff << 44 | 5));
        check(m, MENVCFG, 2 << 4, Ok(0));
        check(m, MIP, u64::MAX, Ok(0x222));
        check(m, super::super::MISA, 0, Ok(MISA));
    }

    const MEDELEG_NUMBER: u16 = super::super::MEDELEG;

    #[test]
    fn absent_and_forbidden_registers_are_refused() {
        check(Privilege::M, 0x7a0, 0, Err(Refused));
        check(Privilege::M, 0x30c, 0, Err(Refused));
        check(Privilege::M, 0x3c0, 0, Err(Refused));
        check(Privilege::M, MHARTID, 0, Err(Refused));
        check(Privilege::S, MSTATUS, 0, Err(Refused));
        check(Privilege::U, SSCRATCH, 0, Err(Refused));
        check(Privilege::S, STIMECMP, 0, Err(Refused));
        check(Privilege::M, FCSR, 0, Err(Refused));
    }
}
