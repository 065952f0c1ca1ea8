//! `demo`: comes with the qcow2 engine.

use anyhow::{Result, bail};

use crate::context::Context;
use crate::flags::Args;

/// Shows what the program can do.
///
/// # Errors
/// What failed.
pub fn run(_cx: &Context, _args: &Args) -> Result<u8> {
    bail!("demo: not available in this version of cowbell")
}
