//! Commands about zones: understood, and refused as on a device that has none.

use super::session::Session;
use super::shell::Done;
use super::words::number;
use crate::flags::Args;

/// Zones that a report can be asked for.
const ZONES_MAX: u64 = u32::MAX as u64;

/// Checks the operands, and fails.
pub(super) fn refuse(session: &Session<'_>, name: &str, args: &Args) -> Done {
    for word in &args.operands {
        if let Err(text) = number(word) {
            return session.fail(&text);
        }
    }
    let count = args.operands.last().and_then(|word| number(word).ok()).unwrap_or(0);
    if name == "zone_report" && count > ZONES_MAX {
        return session.fail("Number of zones must be less than 2^32\n");
    }
    let what = name.replace('_', " ");
    let text = cowbell_block::error::errno_text(cowbell_block::ErrorKind::Unsupported.errno());
    session.fail(&format!("{what} failed: {text}\n"))
}
