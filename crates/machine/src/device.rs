//! The platform devices. Each is plain data: its derived `Hash` is its part of the digest, its `Clone` its
//! checkpoint, so that nothing can be forgotten.

mod aclint;
mod finisher;
mod plic;
mod rtc;
mod uart;

pub use aclint::Aclint;
pub use finisher::{Finish, decode_finish};
pub use plic::Plic;
pub use rtc::Rtc;
pub use uart::Uart;
