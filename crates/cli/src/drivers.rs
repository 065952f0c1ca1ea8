//! The drivers of this program.

use std::sync::Arc;

use cowbell_block::registry::Registry;
use cowbell_luks::LuksDriver;
use cowbell_qcow2::Qcow2Driver;

/// All of them.
pub fn registry() -> Arc<Registry> {
    let mut registry = Registry::new();
    registry.add_builtin();
    cowbell_host::add_drivers(&mut registry);
    registry.add(Qcow2Driver::with_notice(Arc::new(|line: &str| eprintln!("{line}"))));
    registry.add(LuksDriver);
    crate::absent::add_drivers(&mut registry);
    Arc::new(registry)
}
