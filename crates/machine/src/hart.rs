//! One hart: its architectural state, and the translation caches that are no part of it.

use crate::csr::CsrFile;
use crate::ram::Ram;
use crate::tlb::{Mode, Tlb};

/// Where writes to `x0` go, so that the fast path need not test for it.
pub(crate) const SINK: u8 = 32;

/// Privilege level, as encoded in `mstatus.MPP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Privilege {
    /// User.
    U = 0,
    /// Supervisor.
    S = 1,
    /// Machine.
    M = 3,
}

impl Privilege {
    /// From a two-bit field; the reserved value 2 reads as user.
    pub const fn from_bits(bits: u64) -> Privilege {
        match bits & 3 {
            1 => Privilege::S,
            3 => Privilege::M,
            _ => Privilege::U,
        }
    }
}

/// What the hart does when it is its turn (the HSM extension's states that we have).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Executes instructions.
    Started,
    /// Waits for an interrupt in `wfi`.
    Waiting,
    /// Off until the SBI starts it.
    Stopped,
}

/// One hart.
///
/// The register arrays are indexed by `u8` and 256 long so that no index needs a check; only the first 32 are
/// registers, and `x[0]` is always zero.
#[derive(Debug)]
pub struct Hart {
    /// Hart id.
    pub id: u64,
    /// Integer registers.
    pub x: [u64; 256],
    /// Floating-point registers, NaN-boxed.
    pub f: [u64; 256],
    /// Program counter.
    pub pc: u64,
    /// Current privilege.
    pub privilege: Privilege,
    /// Control and status registers.
    pub csr: CsrFile,
    /// Physical address and size of the reservation that `lr` made.
    pub reservation: Option<(u64, u8)>,
    /// Started, waiting or stopped.
    pub run_state: RunState,
    /// Translation caches.
    pub(crate) tlb: Tlb,
    /// Where data accesses look in the caches; a function of privilege and `mstatus`.
    pub(crate) data_mode: Mode,
    /// Where fetches look.
    pub(crate) fetch_mode: Mode,
    /// Floating point may run in the fast path: `mstatus.FS` is dirty already.
    pub(crate) float_ready: bool,
    /// Instructions of the current block that were executed; set when a block is left early.
    pub(crate) executed: u32,
}

impl Hart {
    /// A hart as reset leaves it: machine mode, everything off.
    pub fn new(id: u64) -> Hart {
        let mut hart = Hart {
            id,
            x: [0; 256],
            f: [0; 256],
            pc: 0,
            privilege: Privilege::M,
            csr: CsrFile::new(id),
            reservation: None,
            run_state: RunState::Started,
            tlb: Tlb::new(),
            data_mode: Mode::Bare,
            fetch_mode: Mode::Bare,
            float_ready: false,
            executed: 0,
        };
        hart.update_modes();
        hart
    }

    /// An integer register.
    #[inline]
    pub fn reg(&self, number: u8) -> u64 {
        self.x[number as usize & 31]
    }

    /// Writes an integer register; `x0` stays zero.
    #[inline]
    pub fn set_reg(&mut self, number: u8, value: u64) {
        if number & 31 != 0 {
            self.x[number as usize & 31] = value;
        }
    }

    /// To be called after any change of privilege or `mstatus`.
    pub(crate) fn update_modes(&mut self) {
        let status = self.csr.mstatus;
        self.fetch_mode = Mode::of(self.privilege, false);
        let effective = self.data_privilege();
        self.data_mode = if status.mxr() && effective != Privilege::M {
            Mode::Uncached
        } else {
            Mode::of(effective, status.sum())
        };
        self.float_ready = status.fs() == 3;
    }

    /// Pages that somebody began to watch leave the store TLB at once.
    pub(crate) fn obey_watches(&mut self, ram: &mut Ram) {
        for &page in &ram.attention.watched {
            self.tlb.drop_store(page, ram.cached_at(page));
        }
        if !ram.broadcast {
            ram.attention.watched.clear();
        }
    }

    /// The privilege that loads and stores have, `mstatus.MPRV` considered.
    pub fn data_privilege(&self) -> Privilege {
        if self.csr.mstatus.mprv() { self.csr.mstatus.mpp() } else { self.privilege }
    }
}
