//! The machine as `gdbstub` sees it.

use super::Shared;
use super::registers::{self, DebugArch, RegisterId};
use super::watch::{self, Watchpoint};
use crate::device::Finish;
use crate::machine::{Exit, Machine};
use crate::mmu::translate_for_debugger;
use crate::ram::PAGE;
use gdbstub::common::Signal;
use gdbstub::outputln;
use gdbstub::stub::SingleThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::riscv::reg::RiscvCoreRegs;
use std::convert::Infallible;

/// Instructions between two looks at the connection.
const SLICE: u64 = 2_000_000;
/// The same while watchpoints are set, which is much slower.
const WATCHED_SLICE: u64 = 20_000;

/// A machine under a debugger.
pub struct Debugged<'a, 'b> {
    machine: &'a mut Machine,
    attendant: &'a Shared<'b>,
    hart: usize,
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    resume: Resume,
    /// Count of the access whose watchpoint was reported last.
    reported_at: Option<u64>,
    /// Memory is addressed physically.
    physical: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    Step,
    Continue,
}

impl<'a, 'b> Debugged<'a, 'b> {
    pub(super) fn new(machine: &'a mut Machine, attendant: &'a Shared<'b>) -> Self {
        let resume = Resume::Continue;
        let (breakpoints, watchpoints) = (Vec::new(), Vec::new());
        Debugged {
            machine,
            attendant,
            hart: 0,
            breakpoints,
            watchpoints,
            resume,
            reported_at: None,
            physical: false,
        }
    }

    /// Takes the debugger's marks out of the machine.
    pub(super) fn leave(&mut self) {
        self.machine.set_breakpoints(&[]);
    }

    /// Runs a while. Gives the reason when the machine stopped.
    pub(super) fn advance(&mut self) -> Option<SingleThreadStopReason<u64>> {
        let start = self.machine.count();
        match self.resume {
            Resume::Step => {
                self.machine.leave_breakpoint();
                let exit = self.machine.run(start + 1);
                self.stopped(exit, Some(SingleThreadStopReason::DoneStep))
            }
            Resume::Continue if self.watchpoints.is_empty() => {
                let exit = self.machine.run(start + SLICE);
                let reason = self.stopped(exit, None);
                self.attend_limit(exit);
                reason
            }
            Resume::Continue => {
                while self.machine.count() < start + WATCHED_SLICE {
                    let hart = &self.machine.harts()[self.machine.turn().hart];
                    let hit = watch::touched(hart, &self.machine.bus().ram, &self.watchpoints);
                    let count = self.machine.count();
                    // GDB expects a RISC-V target to stop before the access, and steps over it by itself.
                    if let Some((kind, addr)) = hit.filter(|_| self.reported_at != Some(count)) {
                        self.reported_at = Some(count);
                        return Some(SingleThreadStopReason::Watch { tid: (), kind, addr });
                    }
                    let exit = self.machine.run(count + 1);
                    let reason = self.stopped(exit, None);
                    if reason.is_some() {
                        return reason;
                    }
                }
                self.attend_limit(Exit::Limit);
                None
            }
        }
    }

    /// Between two pieces of a run the surroundings are looked after.
    fn attend_limit(&mut self, exit: Exit) {
        if matches!(exit, Exit::Limit | Exit::Restarted) {
            self.attendant.borrow_mut().attend(self.machine, exit);
        }
    }

    fn stopped(
        &mut self,
        exit: Exit,
        at_limit: Option<SingleThreadStopReason<u64>>,
    ) -> Option<SingleThreadStopReason<u64>> {
        match exit {
            Exit::Limit | Exit::Restarted => at_limit,
            Exit::Finished(Finish::PowerOff(code)) => Some(SingleThreadStopReason::Exited(code as u8)),
            Exit::Finished(Finish::Reset) => Some(SingleThreadStopReason::Exited(0)),
            Exit::Breakpoint { hart } => {
                self.hart = hart;
                Some(SingleThreadStopReason::SwBreak(()))
            }
            Exit::DiskLate | Exit::Idle { .. } => {
                self.attendant.borrow_mut().attend(self.machine, exit);
                None
            }
        }
    }

    /// The physical address of `va`, and how many of `len` bytes lie in its page.
    fn locate(&self, va: u64, len: usize) -> Option<(u64, usize)> {
        let len = len.min((PAGE - va % PAGE) as usize);
        let hart = &self.machine.harts()[self.hart];
        let physical =
            if self.physical { va } else { translate_for_debugger(hart, &self.machine.bus().ram, va)? };
        Some((physical, len))
    }

    fn set_breakpoint(&mut self, address: u64) {
        self.breakpoints.push(address);
        self.machine.set_breakpoints(&self.breakpoints);
    }

    fn remove_breakpoint(&mut self, address: u64) -> bool {
        let position = self.breakpoints.iter().position(|known| *known == address);
        if let Some(position) = position {
            self.breakpoints.swap_remove(position);
            self.machine.set_breakpoints(&self.breakpoints);
        }
        position.is_some()
    }
}

impl Target for Debugged<'_, '_> {
    type Arch = DebugArch;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, DebugArch, Infallible> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadBase for Debugged<'_, '_> {
    fn read_registers(&mut self, regs: &mut RiscvCoreRegs<u64>) -> TargetResult<(), Self> {
        let hart = &self.machine.harts()[self.hart];
        regs.x.copy_from_slice(&hart.x[..32]);
        regs.pc = hart.pc;
        Ok(())
    }

    fn write_registers(&mut self, regs: &RiscvCoreRegs<u64>) -> TargetResult<(), Self> {
        let hart = &mut self.machine.harts_mut()[self.hart];
        for (number, value) in (0..).zip(regs.x) {
            hart.set_reg(number, value);
        }
        hart.pc = regs.pc & !1;
        Ok(())
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, (), Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        let mut done = 0;
        while done < data.len() {
            let va = start.wrapping_add(done as u64);
            let Some((physical, len)) = self.locate(va, data.len() - done) else { break };
            if !self.machine.bus().peek(physical, &mut data[done..done + len]) {
                break;
            }
            done += len;
        }
        if done == 0 && !data.is_empty() { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8]) -> TargetResult<(), Self> {
        let mut done = 0;
        while done < data.len() {
            let va = start.wrapping_add(done as u64);
            let (physical, len) = self.locate(va, data.len() - done).ok_or(TargetError::NonFatal)?;
            if !self.machine.bus_mut().ram.write(physical, &data[done..done + len]) {
                return Err(TargetError::NonFatal);
            }
            done += len;
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<()> for Debugged<'_, '_> {
    fn read_register(&mut self, (): (), register: RegisterId, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let value = registers::read(self.machine, self.hart, register).ok_or(TargetError::NonFatal)?;
        let size = registers::size(register);
        let into = buf.get_mut(..size).ok_or(TargetError::NonFatal)?;
        into.copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(size)
    }

    fn write_register(&mut self, (): (), register: RegisterId, val: &[u8]) -> TargetResult<(), Self> {
        let value = val.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        registers::write(self.machine, self.hart, register, value).ok_or(TargetError::NonFatal)
    }
}

impl SingleThreadResume for Debugged<'_, '_> {
    fn resume(&mut self, _: Option<Signal>) -> Result<(), Infallible> {
        self.resume = Resume::Continue;
        self.machine.leave_breakpoint();
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Debugged<'_, '_> {
    fn step(&mut self, _: Option<Signal>) -> Result<(), Infallible> {
        self.resume = Resume::Step;
        Ok(())
    }
}

impl Breakpoints for Debugged<'_, '_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged<'_, '_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_breakpoint(address);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address))
    }
}

impl HwBreakpoint for Debugged<'_, '_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_breakpoint(address);
        Ok(true)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address))
    }
}

impl HwWatchpoint for Debugged<'_, '_> {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.watchpoints.push(Watchpoint { address, len, kind });
        Ok(true)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let wanted = Watchpoint { address, len, kind };
        let position = self.watchpoints.iter().position(|known| *known == wanted);
        if let Some(position) = position {
            self.watchpoints.swap_remove(position);
        }
        Ok(position.is_some())
    }
}

impl MonitorCmd for Debugged<'_, '_> {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Infallible> {
        match command {
            b"icount" => outputln!(out, "{}", self.machine.count()),
            b"digest" => outputln!(out, "{:032x}", self.machine.digest()),
            b"physical" => self.physical = true,
            b"virtual" => self.physical = false,
            _ => outputln!(out, "commands: icount, digest, physical, virtual"),
        }
        Ok(())
    }
}

impl TargetDescriptionXmlOverride for Debugged<'_, '_> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let xml = registers::description();
        let rest = xml.as_bytes().get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(length).min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}
