//! The habits of a simulated host.

/// What a discard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discards {
    /// The range reads as zeroes.
    Zero,
    /// Nothing: the old data stays for good.
    Keep,
    /// The old data can be read until the power is cut; after that it may be gone.
    Late,
    /// It fails as unsupported.
    Unsupported,
    /// It fails with EINVAL, as hole punching does on some file systems.
    Invalid,
}

impl Discards {
    /// All, with their names in scenario files.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Zero, "zero"),
        (Self::Keep, "keep"),
        (Self::Late, "late"),
        (Self::Unsupported, "unsupported"),
        (Self::Invalid, "invalid"),
    ];
}

/// What of one I/O survives a power cut together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atom {
    /// Each sector of 512 bytes by itself.
    Sector,
    /// Each aligned block of 4096 bytes by itself.
    Block,
    /// The whole of it: no I/O is ever torn.
    Request,
}

impl Atom {
    /// All, with their names in scenario files.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Sector, "512"), (Self::Block, "4096"), (Self::Request, "request")];

    /// Whether a tear may fall between `sector` and the one after it.
    pub fn ends_at(self, sector: u32) -> bool {
        match self {
            Self::Sector => true,
            Self::Block => sector % 8 == 7,
            Self::Request => false,
        }
    }
}

/// How the simulated host behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Grain of requests in bytes, 1 or a power of two.
    pub alignment: u32,
    /// What is never torn.
    pub atom: Atom,
    /// One in so many requests is answered at once instead of being made to wait; 0 for none.
    pub done_one_in: u64,
    /// What a discard does.
    pub discards: Discards,
    /// A write of zeroes without fallback fails as unsupported.
    pub no_fast_zeroes: bool,
    /// What was written and not flushed is reported as a hole (`SEEK_HOLE` on some file systems).
    pub dirty_holes: bool,
    /// Zeroing or growing beyond the end of the file swallows what others write there meanwhile (XFS).
    pub growth_swallows: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            alignment: 1,
            atom: Atom::Sector,
            done_one_in: 0,
            discards: Discards::Zero,
            no_fast_zeroes: false,
            dirty_holes: false,
            growth_swallows: false,
        }
    }
}
