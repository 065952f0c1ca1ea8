//! The machine: harts taking turns, the clock, interrupts at exactly their count, idle time.
//!
//! ```text
//!   run(limit) ──► strike due events ──► raise lines ──► take an interrupt ──► run the hart whose turn it is
//!       ▲                                                      │               for exactly the budget up to the
//!       └── finish, a late disk, nothing to do ◄── limit ◄─────┴─────────────  next deadline, turn end or limit
//! ```
//!
//! A run that stops at a limit or a breakpoint stops *settled*: all that is due by its count has struck, and the
//! interrupt that comes before the next instruction is taken. So there is one state for each count, however the
//! machine was stopped there. What comes from outside while it stands comes one instant later.

use crate::boot::Boot;
use crate::bus::{Bus, Ports};
use crate::clock::Clock;
use crate::config::{ConfigError, Engine, Idle, MachineConfig};
use crate::csr::interrupt;
use crate::device::Finish;
use crate::engine::{Blocks, LEN_MAX, Plain, Stop, Tier};
use crate::event::Event;
use crate::hart::{Hart, RunState};
use crate::port::ConsoleId;
use crate::ram::Ram;
use crate::sbi;
use crate::virtio::{Block, Entropy, Kind, Net, Transport, VirtioConsole};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The instruction count asked for is reached.
    Limit,
    /// The guest switched off, or reset a machine that does not know what to boot again.
    Finished(Finish),
    /// The guest reset the machine, which stands before its first instruction again. Run on.
    Restarted,
    /// A disk request is due and the host has not answered; run again when it may have.
    DiskLate,
    /// Every hart waits. With a deadline: nothing happens for so many nanoseconds (only with
    /// [`Idle::Real`]; let them pass and call [`Machine::pass_idle`]). Without: only input can wake it.
    Idle {
        /// Nanoseconds until the next timer or event.
        for_ns: Option<u64>,
    },
    /// A breakpoint lies at the pc of this hart; the instruction there was not executed.
    Breakpoint {
        /// Which hart.
        hart: usize,
    },
}

/// A whole machine.
pub struct Machine {
    pub(crate) harts: Vec<Hart>,
    pub(crate) bus: Bus,
    tier: Box<dyn Tier>,
    idle: Idle,
    turn: Turn,
    breakpoints: Vec<u64>,
    /// Do not stop at the breakpoint the run starts on.
    leave_breakpoint: bool,
    /// What a reset boots again.
    restart: Option<Box<(MachineConfig, Boot)>>,
    resets: u64,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Machine").field("bus", &self.bus).finish_non_exhaustive()
    }
}

/// Whose turn it is: state, since it decides which instruction is the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Turn {
    pub(crate) hart: usize,
    pub(crate) left: u64,
}

/// Instructions a hart runs before the next one's turn.
const TURN: u64 = 10_000;

/// A deadline from this nanosecond on never comes, so that no timer value a guest writes can carry the clock past its
/// end: more than a century.
const FAR_NS: u64 = 1 << 62;

impl Machine {
    /// A machine with nothing loaded: see [`crate::boot`] for that.
    ///
    /// # Errors
    /// When there can be no such machine.
    pub fn new(config: &MachineConfig, ports: Ports) -> Result<Machine, ConfigError> {
        config.check(ports.disks.len())?;
        let bytes = config.ram_bytes;
        let ram = Ram::new(bytes).ok_or(ConfigError::HostMemory { bytes })?;
        let disks: Vec<(u64, bool)> = ports.disks.iter().map(|disk| (disk.len(), disk.read_only())).collect();
        let count = config.harts;
        let mut bus = Bus::new(ram, Clock::new(config.shift), count, config.rtc_start_ns, ports);
        let mut kinds: Vec<Kind> = disks
            .iter()
            .enumerate()
            .map(|(port, (len, read_only))| {
                Kind::Block(Block::new(port, *len, *read_only, config.disk_latency))
            })
            .collect();
        kinds.push(Kind::Console(VirtioConsole::default()));
        kinds.push(Kind::Entropy(Entropy::new(config.seed)));
        if bus.ports.network.is_some() {
            kinds.push(Kind::Net(Net::new(config.mac)));
        }
        for (slot, kind) in bus.virtio.iter_mut().zip(kinds) {
            *slot = Transport::new(kind);
        }
        Ok(Machine {
            harts: (0..count as u64).map(Hart::new).collect(),
            bus,
            tier: match config.engine {
                Engine::Plain => Box::new(Plain::default()),
                Engine::Blocks => Box::new(Blocks::new(LEN_MAX)),
                Engine::ShortBlocks(len) => Box::new(Blocks::new(len)),
            },
            idle: config.idle,
            turn: Turn { hart: 0, left: TURN },
            breakpoints: Vec::new(),
            leave_breakpoint: false,
            restart: None,
            resets: 0,
        })
    }

    /// From now on a reset boots this again, as it was booted at first; without this, a reset ends the run.
    pub fn set_restart(&mut self, config: MachineConfig, boot: Boot) {
        self.restart = Some(Box::new((config, boot)));
    }

    /// How often the guest reset the machine.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Instructions executed so far.
    pub fn count(&self) -> u64 {
        self.bus.clock.count
    }

    /// The harts.
    pub fn harts(&self) -> &[Hart] {
        &self.harts
    }

    /// The harts, to be changed by a debugger or loader.
    pub fn harts_mut(&mut self) -> &mut [Hart] {
        &mut self.harts
    }

    /// Memory and devices.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Memory and devices, to be changed by a debugger or loader.
    pub fn bus_mut(&mut self) -> &mut Bus {
        &mut self.bus
    }

    pub(crate) fn turn(&self) -> Turn {
        self.turn
    }

    /// Types into a console, at the next instant: what is due now has struck already. Gives that instant, at which
    /// [`input_at`](Self::input_at) repeats it in another run.
    pub fn input(&mut self, console: ConsoleId, bytes: &[u8]) -> u64 {
        let at = self.bus.clock.now() + 1;
        self.input_at(at, console, bytes);
        at
    }

    /// Types into a console when the clock stands at `at` (instructions, idle time included).
    pub fn input_at(&mut self, at: u64, console: ConsoleId, bytes: &[u8]) {
        self.bus.events.push(at, Event::Input { console, bytes: bytes.to_vec() });
    }

    /// Bytes that a console takes before it drops some.
    pub fn input_room(&self, console: ConsoleId) -> usize {
        match console {
            ConsoleId::Uart => self.bus.uart.room(),
            ConsoleId::Virtio => self.bus.virtio.iter().map(|slot| slot.kind.input_room()).sum(),
        }
    }

    /// Delivers a frame to the network card when the clock stands at `at`.
    pub fn frame_at(&mut self, at: u64, bytes: &[u8]) {
        self.bus.events.push(at, Event::Frame { bytes: bytes.to_vec() });
    }

    /// Replaces the set of addresses (as seen by the hart) before which a run stops.
    pub fn set_breakpoints(&mut self, addresses: &[u64]) {
        self.breakpoints = addresses.to_vec();
        self.breakpoints.sort_unstable();
        self.tier.set_breakpoints(&self.breakpoints, &mut self.bus.ram);
    }

    /// The next run does not stop at the breakpoint it starts on.
    pub fn leave_breakpoint(&mut self) {
        self.leave_breakpoint = true;
    }

    /// Lets idle time pass, at most up to the next deadline.
    pub fn pass_idle(&mut self, ns: u64) {
        let deadline = self.next_deadline();
        let now = self.bus.clock.now();
        self.bus.clock.idle += self.bus.clock.instructions_in(ns).min(deadline.saturating_sub(now));
    }

    /// Drops every cache: decoded code and translations. Nothing the guest can see changes.
    pub fn drop_caches(&mut self) {
        for hart in &mut self.harts {
            hart.tlb.flush();
        }
        self.bus.ram.forget_tables();
        self.tier.clear(&mut self.bus.ram);
    }

    /// Runs until the instruction count is `limit`, or something else ends the run.
    pub fn run(&mut self, limit: u64) -> Exit {
        self.act_on_attention();
        loop {
            if let Some(finish) = self.bus.finish {
                let restarted = finish == Finish::Reset && self.reset();
                return if restarted { Exit::Restarted } else { Exit::Finished(finish) };
            }
            if !self.bus.strike_due() {
                return Exit::DiskLate;
            }
            self.act_on_attention();
            self.update_lines();
            let runnable = self.choose_hart();
            if runnable {
                let hart = &mut self.harts[self.turn.hart];
                if let Some(number) = hart.interrupt_to_take() {
                    hart.take_interrupt(number);
                }
            }
            if self.count() >= limit {
                return Exit::Limit;
            }
            let exit = if runnable { self.run_turn(limit) } else { self.idle() };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    /// Resets harts and devices and boots again. Memory keeps what it holds but for what is loaded; count and clock go on;
    /// disk requests on their way come to their end without telling anybody. `false`, and nothing done, when it is not
    /// known what to boot.
    fn reset(&mut self) -> bool {
        let Some(restart) = self.restart.take() else { return false };
        let (config, boot) = &*restart;
        self.drop_caches();
        self.harts = (0..self.harts.len() as u64).map(Hart::new).collect();
        self.bus.reset(config.rtc_start_ns);
        self.turn = Turn { hart: 0, left: TURN };
        self.resets += 1;
        // What could be loaded once can be again.
        let booted = self.boot(config, boot);
        debug_assert!(booted.is_ok());
        self.restart = Some(restart);
        booted.is_ok()
    }

    /// Runs the hart whose turn it is up to the next deadline.
    fn run_turn(&mut self, limit: u64) -> Option<Exit> {
        let now = self.bus.clock.now();
        let deadline = self.next_deadline();
        let hart = &self.harts[self.turn.hart];
        if self.breakpoints.binary_search(&hart.pc).is_ok() && !std::mem::take(&mut self.leave_breakpoint) {
            return Some(Exit::Breakpoint { hart: self.turn.hart });
        }
        self.leave_breakpoint = false;
        let mut budget = (limit - self.bus.clock.count).min(deadline.saturating_sub(now).max(1));
        if self.harts.len() > 1 {
            budget = budget.min(self.turn.left);
        }
        let start = self.bus.clock.count;
        let stop = self.tier.run(&mut self.harts[self.turn.hart], &mut self.bus, budget);
        let executed = self.bus.clock.count - start;
        self.turn.left = self.turn.left.saturating_sub(executed);
        match stop {
            Stop::Sbi => sbi::call(self),
            Stop::Attention => self.act_on_attention(),
            Stop::Budget | Stop::Changed | Stop::Wait => {}
        }
        if self.harts.len() > 1 && (self.turn.left == 0 || stop == Stop::Wait) {
            self.end_turn();
        }
        None
    }

    fn end_turn(&mut self) {
        self.turn = Turn { hart: (self.turn.hart + 1) % self.harts.len(), left: TURN };
        // Another hart may store where this one holds a reservation; failing it is always allowed.
        for hart in &mut self.harts {
            hart.reservation = None;
        }
    }

    /// Moves the turn to a hart that can run. False when none can.
    fn choose_hart(&mut self) -> bool {
        for _ in 0..self.harts.len() {
            let hart = &mut self.harts[self.turn.hart];
            match hart.run_state {
                RunState::Started => return true,
                // Waking needs no global enable, only a pending interrupt that is enabled.
                RunState::Waiting if hart.csr.pending() & hart.csr.mie != 0 => {
                    hart.run_state = RunState::Started;
                    return true;
                }
                RunState::Waiting | RunState::Stopped => {}
            }
            if self.harts.len() > 1 {
                self.end_turn();
            }
        }
        false
    }

    /// Every hart waits: skips to the next deadline, or says that the time has to be lived.
    fn idle(&mut self) -> Option<Exit> {
        let deadline = self.next_deadline();
        let clock = &mut self.bus.clock;
        if deadline == u64::MAX {
            return Some(Exit::Idle { for_ns: None });
        }
        let away = deadline.saturating_sub(clock.now());
        match self.idle {
            Idle::Warp => {
                clock.idle += away;
                None
            }
            Idle::Real if away == 0 => None,
            Idle::Real => Some(Exit::Idle { for_ns: Some(away << clock.shift) }),
        }
    }

    /// The first instant after now at which a timer or an event changes something.
    fn next_deadline(&self) -> u64 {
        let clock = &self.bus.clock;
        let ticks = clock.ticks();
        let mut deadline = self.bus.events.next_time();
        let mut consider = |compare: u64| {
            if compare > ticks {
                deadline = deadline.min(clock.when_ticks(compare));
            }
        };
        for (hart, compare) in self.harts.iter().zip(&self.bus.aclint.mtimecmp) {
            consider(*compare);
            if hart.csr.has_stimecmp() || self.bus.builtin_sbi {
                consider(hart.csr.stimecmp);
            }
        }
        if let Some(ns) = self.bus.rtc.deadline_ns() {
            deadline = deadline.min(clock.instructions_in(ns));
        }
        if deadline < FAR_NS >> clock.shift { deadline } else { u64::MAX }
    }

    /// Puts every interrupt line where devices and timers say now.
    pub(crate) fn update_lines(&mut self) {
        self.bus.update_lines();
        let ticks = self.bus.clock.ticks();
        for (index, hart) in self.harts.iter_mut().enumerate() {
            let up = |condition: bool, bit: u64| if condition { bit } else { 0 };
            let supervisor_timer = hart.csr.has_stimecmp() || self.bus.builtin_sbi;
            hart.csr.lines = up(self.bus.aclint.msip[index], interrupt::MSI)
                | up(ticks >= self.bus.aclint.mtimecmp[index], interrupt::MTI)
                | up(supervisor_timer && ticks >= hart.csr.stimecmp, interrupt::STI)
                | up(self.bus.plic.output(2 * index), interrupt::MEI)
                | up(self.bus.plic.output(2 * index + 1), interrupt::SEI);
        }
    }

    /// Tells the caches what stores have made stale.
    pub(crate) fn act_on_attention(&mut self) {
        if self.bus.ram.attention.is_empty() {
            return;
        }
        let attention = std::mem::take(&mut self.bus.ram.attention);
        for hart in &mut self.harts {
            for stale in &attention.translations {
                hart.tlb.drop_stale(*stale);
            }
            for page in &attention.watched {
                hart.tlb.drop_store(*page, self.bus.ram.cached_at(*page));
            }
        }
        for page in attention.code {
            self.tier.forget_page(page, &mut self.bus.ram);
        }
    }
}
