//! Traps: taking them, choosing the interrupt to take, and returning.

use crate::csr::{Mstatus, interrupt};
use crate::hart::{Hart, Privilege, RunState};

/// The cause of an exception, numbered as in `mcause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the specification's own names")]
pub enum Cause {
    FetchMisaligned = 0,
    FetchAccessFault = 1,
    IllegalInstruction = 2,
    Breakpoint = 3,
    LoadMisaligned = 4,
    LoadAccessFault = 5,
    StoreMisaligned = 6,
    StoreAccessFault = 7,
    EcallFromU = 8,
    EcallFromS = 9,
    EcallFromM = 11,
    FetchPageFault = 12,
    LoadPageFault = 13,
    StorePageFault = 15,
}

/// An exception about to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Why.
    pub cause: Cause,
    /// What goes into `mtval` or `stval`.
    pub value: u64,
}

impl Trap {
    /// An illegal instruction, with its bits.
    pub const fn illegal(bits: u32) -> Trap {
        Trap { cause: Cause::IllegalInstruction, value: bits as u64 }
    }
}

const INTERRUPT: u64 = 1 << 63;

impl Hart {
    /// Takes an exception at the current pc.
    pub fn take_exception(&mut self, trap: Trap) {
        // It was counted, but it did not retire.
        self.csr.instret_offset = self.csr.instret_offset.wrapping_sub(1);
        let cause = trap.cause as u64;
        let to_supervisor = self.privilege != Privilege::M && self.csr.medeleg >> cause & 1 != 0;
        self.enter(cause, trap.value, to_supervisor);
    }

    /// The interrupt that strikes before the next instruction, if any.
    #[inline]
    pub fn interrupt_to_take(&self) -> Option<u64> {
        let ready = self.csr.pending() & self.csr.mie;
        if ready == 0 { None } else { self.choose_interrupt(ready) }
    }

    fn choose_interrupt(&self, ready: u64) -> Option<u64> {
        use interrupt::*;
        let status = self.csr.mstatus;
        let machine = ready & !self.csr.mideleg;
        let supervisor = ready & self.csr.mideleg;
        let machine_open = self.privilege != Privilege::M || status.mie();
        let supervisor_open =
            self.privilege < Privilege::S || (self.privilege == Privilege::S && status.sie());
        let eligible = match (machine_open && machine != 0, supervisor_open && supervisor != 0) {
            (true, _) => machine,
            (false, true) => supervisor,
            (false, false) => return None,
        };
        let order = [MEI, MSI, MTI, SEI, SSI, STI];
        order.into_iter().find(|bit| eligible & bit != 0).map(|bit| bit.trailing_zeros().into())
    }

    /// Takes an interrupt.
    pub fn take_interrupt(&mut self, number: u64) {
        self.run_state = RunState::Started;
        let to_supervisor = self.privilege != Privilege::M && self.csr.mideleg >> number & 1 != 0;
        self.enter(INTERRUPT | number, 0, to_supervisor);
    }

    fn enter(&mut self, cause: u64, value: u64, to_supervisor: bool) {
        let (pc, from) = (self.pc, self.privilege);
        let csr = &mut self.csr;
        let status = &mut csr.mstatus.0;
        let vector = if to_supervisor {
            (csr.sepc, csr.scause, csr.stval) = (pc, cause, value);
            let enabled = *status & Mstatus::SIE != 0;
            *status &= !(Mstatus::SIE | Mstatus::SPIE | Mstatus::SPP);
            *status |= if enabled { Mstatus::SPIE } else { 0 };
            *status |= if from == Privilege::S { Mstatus::SPP } else { 0 };
            self.privilege = Privilege::S;
            csr.stvec
        } else {
            (csr.mepc, csr.mcause, csr.mtval) = (pc, cause, value);
            let enabled = *status & Mstatus::MIE != 0;
            *status &= !(Mstatus::MIE | Mstatus::MPIE | Mstatus::MPP);
            *status |= if enabled { Mstatus::MPIE } else { 0 };
            *status |= (from as u64) << 11;
            self.privilege = Privilege::M;
            csr.mtvec
        };
        let vectored = vector & 3 == 1 && cause & INTERRUPT != 0;
        self.pc = (vector & !3).wrapping_add(if vectored { 4 * (cause & !INTERRUPT) } else { 0 });
        self.reservation = None;
        self.update_modes();
    }

    /// `mret`.
    pub fn return_from_machine(&mut self) {
        let status = &mut self.csr.mstatus.0;
        let to = Privilege::from_bits(*status >> 11);
        let enable = if *status & Mstatus::MPIE != 0 { Mstatus::MIE } else { 0 };
        *status = *status & !(Mstatus::MIE | Mstatus::MPP) | enable | Mstatus::MPIE;
        self.leave(to, self.csr.mepc);
    }

    /// `sret`.
    pub fn return_from_supervisor(&mut self) {
        let status = &mut self.csr.mstatus.0;
        let to = if *status & Mstatus::SPP != 0 { Privilege::S } else { Privilege::U };
        let enable = if *status & Mstatus::SPIE != 0 { Mstatus::SIE } else { 0 };
        *status = *status & !(Mstatus::SIE | Mstatus::SPP) | enable | Mstatus::SPIE;
        self.leave(to, self.csr.sepc);
    }

    fn leave(&mut self, to: Privilege, pc: u64) {
        if to != Privilege::M {
            self.csr.mstatus.0 &= !Mstatus::MPRV;
        }
        self.privilege = to;
        self.pc = pc;
        self.reservation = None;
        self.update_modes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets up a hart, asks for its interrupt, and compares.
    #[track_caller]
    fn check(privilege: Privilege, status: u64, pending: u64, delegated: u64, expect: Option<u64>) {
        let mut hart = Hart::new(0);
        hart.privilege = privilege;
        hart.csr.mstatus = Mstatus(status);
        (hart.csr.mip, hart.csr.mie, hart.csr.mideleg) = (pending, !0, delegated);
        assert_eq!(hart.interrupt_to_take(), expect);
    }

    #[test]
    fn interrupts_follow_privilege_delegation_and_priority() {
        use interrupt::*;
        check(Privilege::M, 0, MTI, 0, None);
        check(Privilege::M, Mstatus::MIE, MTI | MSI, 0, Some(3));
        check(Privilege::S, 0, MTI, 0, Some(7));
        check(Privilege::S, 0, STI, STI, None);
        check(Privilege::S, Mstatus::SIE, STI | SEI, STI | SEI, Some(9));
        check(Privilege::U, 0, STI, STI, Some(5));
        check(Privilege::M, Mstatus::MIE, STI, STI, None);
        check(Privilege::U, 0, STI | MTI, STI, Some(7));
    }

    #[test]
    fn trap_and_return_are_inverse() {
        let mut hart = Hart::new(0);
        hart.privilege = Privilege::U;
        hart.csr.medeleg = 1 << 8;
        hart.csr.stvec = 0x1001;
        hart.csr.mstatus = Mstatus(Mstatus::SIE);
        hart.pc = 0x44;
        hart.take_exception(Trap { cause: Cause::EcallFromU, value: 0 });
        assert_eq!(
            (hart.pc, hart.privilege, hart.csr.sepc, hart.csr.scause),
            (0x1000, Privilege::S, 0x44, 8)
        );
        assert_eq!(hart.csr.mstatus.0, Mstatus::SPIE);
        hart.return_from_supervisor();
        assert_eq!((hart.pc, hart.privilege), (0x44, Privilege::U));
        assert_eq!(hart.csr.mstatus.0, Mstatus::SIE | Mstatus::SPIE);
        hart.privilege = Privilege::S;
        hart.csr.stvec = 0x1001;
        hart.take_interrupt(5);
        // Not delegated: machine mode, whose vector is zero.
        assert_eq!((hart.pc, hart.privilege, hart.csr.mcause), (0, Privilege::M, INTERRUPT | 5));
    }
}
