//! The test finisher: how a guest switches the machine off, resets it, and says how it went.

/// How a guest ended its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// Power off with an exit code; 0 is success.
    PowerOff(u16),
    /// Reset asked for.
    Reset,
}

/// What a write of 32 bits to the device asks for.
pub const fn decode_finish(value: u32) -> Option<Finish> {
    match value & 0xffff {
        0x5555 => Some(Finish::PowerOff(0)),
        0x3333 => Some(Finish::PowerOff((value >> 16) as u16)),
        0x7777 => Some(Finish::Reset),
        _ => None,
    }
}
