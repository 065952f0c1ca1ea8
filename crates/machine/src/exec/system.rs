//! System instructions: registers, returns, fences, cache blocks.

use super::Step;
use crate::bus::Bus;
use crate::csr::{self, Access, CsrEffect, ENVCFG_CBCFE, ENVCFG_CBIE, ENVCFG_CBZE};
use crate::hart::{Hart, Privilege, RunState};
use crate::isa::{Format, Insn, Op};
use crate::mmu::{AccessKind, translate};
use crate::trap::{Cause, Trap};

pub(super) fn execute(hart: &mut Hart, bus: &mut Bus, insn: &Insn, next: &mut u64) -> Result<Step, Trap> {
    let illegal = Err(Trap::illegal(insn.raw));
    let status = hart.csr.mstatus;
    let privilege = hart.privilege;
    let supervisor = privilege == Privilege::S;
    match insn.op {
        // Memory is coherent and accesses happen in order: fences have nothing to do.
        Op::Fence | Op::FenceI | Op::Pause => Ok(Step::Done),
        Op::Ecall => ecall(hart, bus, next),
        Op::Ebreak => Err(Trap { cause: Cause::Breakpoint, value: hart.pc }),
        Op::Mret if privilege == Privilege::M => {
            hart.return_from_machine();
            *next = hart.pc;
            Ok(Step::Changed)
        }
        Op::Sret if privilege == Privilege::M || (supervisor && !status.tsr()) => {
            hart.return_from_supervisor();
            *next = hart.pc;
            Ok(Step::Changed)
        }
        Op::Wfi if privilege == Privilege::M || (supervisor && !status.tw()) => {
            hart.run_state = RunState::Waiting;
            Ok(Step::Wait)
        }
        // Translations are kept coherent with the tables, so that all that is left is the permission.
        Op::SfenceVma | Op::SinvalVma if privilege == Privilege::M || (supervisor && !status.tvm()) => {
            Ok(Step::Done)
        }
        Op::SfenceWInval | Op::SfenceInvalIr if privilege != Privilege::U => Ok(Step::Done),
        _ if matches!(insn.op.format(), Format::Csr | Format::CsrI) => access_csr(hart, bus, insn),
        _ if insn.op.format() == Format::Cbo => cache_block(hart, bus, insn),
        _ => illegal,
    }
}

fn ecall(hart: &mut Hart, bus: &mut Bus, next: &mut u64) -> Result<Step, Trap> {
    let cause = match hart.privilege {
        Privilege::U => Cause::EcallFromU,
        Privilege::S if bus.builtin_sbi => {
            *next = hart.pc;
            return Ok(Step::Sbi);
        }
        Privilege::S => Cause::EcallFromS,
        Privilege::M => Cause::EcallFromM,
    };
    Err(Trap { cause, value: 0 })
}

pub(crate) fn access_csr(hart: &mut Hart, bus: &mut Bus, insn: &Insn) -> Result<Step, Trap> {
    let illegal = |_| Trap::illegal(insn.raw);
    let number = insn.imm as u16;
    let operand = if insn.op.format() == Format::CsrI { insn.rs1.into() } else { hart.reg(insn.rs1) };
    let replaces = matches!(insn.op, Op::Csrrw | Op::Csrrwi);
    let access = if replaces || insn.rs1 != 0 { Access::Write } else { Access::Read };
    let old = csr::read(hart, &bus.clock, number, access).map_err(illegal)?;
    let mut effect = CsrEffect::None;
    if access == Access::Write {
        let base = csr::modify_base(hart, number, old);
        let new = match insn.op {
            Op::Csrrs | Op::Csrrsi => base | operand,
            Op::Csrrc | Op::Csrrci => base & !operand,
            _ => operand,
        };
        effect = csr::write(hart, &bus.clock, number, new).map_err(illegal)?;
    }
    hart.set_reg(insn.rd, old);
    Ok(match effect {
        CsrEffect::None => Step::Done,
        CsrEffect::Interrupts => Step::Changed,
        CsrEffect::Translations => {
            hart.tlb.flush();
            bus.translations_dropped(hart.id);
            Step::Changed
        }
    })
}

fn cache_block(hart: &mut Hart, bus: &mut Bus, insn: &Insn) -> Result<Step, Trap> {
    const BLOCK: u64 = 64;
    let enable = match insn.op {
        Op::CboZero => ENVCFG_CBZE,
        Op::CboInval => ENVCFG_CBIE,
        _ => ENVCFG_CBCFE,
    };
    let machine_allows = hart.privilege == Privilege::M || hart.csr.menvcfg & enable != 0;
    let supervisor_allows = hart.privilege != Privilege::U || hart.csr.senvcfg & enable != 0;
    if !machine_allows || !supervisor_allows {
        return Err(Trap::illegal(insn.raw));
    }
    let va = hart.reg(insn.rs1);
    let kind = if insn.op == Op::CboZero { AccessKind::Store } else { AccessKind::Load };
    // Management asks for the right to load or to store and faults as a store.
    let at = translate(hart, &mut bus.ram, va & !(BLOCK - 1), BLOCK, kind)
        .or_else(|_| translate(hart, &mut bus.ram, va & !(BLOCK - 1), BLOCK, AccessKind::Store))
        .map_err(|cause| Trap { cause, value: va })?;
    if insn.op == Op::CboZero && !bus.ram.write(at.address, &[0; BLOCK as usize]) {
        return Err(Trap { cause: Cause::StoreAccessFault, value: va });
    }
    Ok(Step::Done)
}
