//! The one entry for checks.
fn main() {}
