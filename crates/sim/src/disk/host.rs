//! The habits of a simulated host.

/// How the simulated host behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Grain of requests in bytes, 1 or a power of two.
    pub alignment: u32,
    /// One in so many requests is answered at once instead of being made to wait; 0 for none.
    pub done_one_in: u64,
    /// A discard leaves the old data in place.
    pub discard_keeps_data: bool,
    /// A discard fails as unsupported.
    pub no_discard: bool,
    /// A write of zeroes without fallback fails as unsupported.
    pub no_fast_zeroes: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            alignment: 1,
            done_one_in: 0,
            discard_keeps_data: false,
            no_discard: false,
            no_fast_zeroes: false,
        }
    }
}
