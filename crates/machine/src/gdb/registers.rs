//! Registers as GDB numbers and describes them: core, floating point, CSRs, and the privilege.

use crate::csr::{self, Access, CsrEffect};
use crate::hart::{Hart, Privilege};
use crate::machine::Machine;
use gdbstub::arch::{Arch, RegId};
use gdbstub_arch::riscv::reg::RiscvCoreRegs;
use std::num::NonZeroUsize;

/// RV64 with all registers reachable one by one.
#[derive(Debug)]
pub enum DebugArch {}

impl Arch for DebugArch {
    type Usize = u64;
    type Registers = RiscvCoreRegs<u64>;
    type BreakpointKind = usize;
    type RegId = RegisterId;
}

/// A register by GDB's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterId {
    /// An integer register.
    X(u8),
    /// The program counter.
    Pc,
    /// A floating-point register.
    F(u8),
    /// A control and status register.
    Csr(u16),
    /// The current privilege.
    Privilege,
}

const PC: usize = 32;
const FIRST_FLOAT: usize = 33;
const FIRST_CSR: usize = 65;
const PRIVILEGE: usize = FIRST_CSR + 4096;

impl RegId for RegisterId {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let register = match id {
            0..PC => RegisterId::X(id as u8),
            PC => RegisterId::Pc,
            FIRST_FLOAT..FIRST_CSR => RegisterId::F((id - FIRST_FLOAT) as u8),
            FIRST_CSR..PRIVILEGE => RegisterId::Csr((id - FIRST_CSR) as u16),
            PRIVILEGE => RegisterId::Privilege,
            _ => return None,
        };
        Some((register, None))
    }
}

/// Reads a register, whatever the hart's privilege; `None` when there is none such.
pub(super) fn read(machine: &mut Machine, hart: usize, register: RegisterId) -> Option<u64> {
    let clock = machine.bus.clock;
    let hart = &mut machine.harts[hart];
    Some(match register {
        RegisterId::X(number) => hart.reg(number),
        RegisterId::Pc => hart.pc,
        RegisterId::F(number) => hart.f[number as usize],
        RegisterId::Csr(csr::FFLAGS) => hart.csr.fflags.into(),
        RegisterId::Csr(csr::FRM) => hart.csr.frm.into(),
        RegisterId::Csr(csr::FCSR) => u64::from(hart.csr.frm) << 5 | u64::from(hart.csr.fflags),
        RegisterId::Csr(number) => {
            return as_machine(hart, |hart| csr::read(hart, &clock, number, Access::Read).ok());
        }
        RegisterId::Privilege => hart.privilege as u64,
    })
}

/// Writes a register; `None` when there is none such, or it cannot be written.
pub(super) fn write(machine: &mut Machine, hart: usize, register: RegisterId, value: u64) -> Option<()> {
    let clock = machine.bus.clock;
    let hart = &mut machine.harts[hart];
    match register {
        RegisterId::X(number) => hart.set_reg(number, value),
        RegisterId::Pc => hart.pc = value & !1,
        RegisterId::F(number) => hart.f[number as usize] = value,
        RegisterId::Csr(number) => {
            let effect = as_machine(hart, |hart| csr::write(hart, &clock, number, value).ok())?;
            if effect == CsrEffect::Translations {
                hart.tlb.flush();
            }
        }
        RegisterId::Privilege => hart.privilege = Privilege::from_bits(value),
    }
    hart.update_modes();
    Some(())
}

fn as_machine<T>(hart: &mut Hart, run: impl FnOnce(&mut Hart) -> T) -> T {
    let privilege = std::mem::replace(&mut hart.privilege, Privilege::M);
    let result = run(hart);
    hart.privilege = privilege;
    hart.update_modes();
    result
}

/// The target description.
pub(super) fn description() -> String {
    let register = |name: &str, bits: u32, kind: &str, number: usize| {
        format!("<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\" regnum=\"{number}\"/>")
    };
    let feature = |name: &str, registers: Vec<String>| {
        format!("<feature name=\"org.gnu.gdb.riscv.{name}\">{}</feature>", registers.concat())
    };
    let mut core: Vec<String> = (0..)
        .zip(crate::isa::X_NAMES)
        .map(|(number, name)| {
            register(name, 64, if matches!(number, 2..=4) { "data_ptr" } else { "int" }, number)
        })
        .collect();
    core.push(register("pc", 64, "code_ptr", PC));
    let float_csrs = [csr::FFLAGS, csr::FRM, csr::FCSR];
    let float = (FIRST_FLOAT..)
        .zip(crate::isa::F_NAMES)
        .map(|(number, name)| register(name, 64, "ieee_double", number))
        .chain(float_csrs.map(|number| {
            register(&csr::Name(number).to_string(), 32, "int", FIRST_CSR + usize::from(number))
        }))
        .collect();
    let control = csr::NAMES
        .iter()
        .filter(|(number, _)| !float_csrs.contains(number))
        .map(|(number, name)| register(name, 64, "int", FIRST_CSR + usize::from(*number)))
        .collect();
    format!(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">\
         <architecture>riscv:rv64</architecture>{}{}{}{}</target>",
        feature("cpu", core),
        feature("fpu", float),
        feature("csr", control),
        feature("virtual", vec![register("priv", 64, "int", PRIVILEGE)]),
    )
}

/// Bytes that GDB expects for a register.
pub(super) fn size(register: RegisterId) -> usize {
    match register {
        RegisterId::Csr(csr::FFLAGS | csr::FRM | csr::FCSR) => 4,
        _ => 8,
    }
}
