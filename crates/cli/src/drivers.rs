//! The drivers of this program.

use std::sync::Arc;

use cowbell_block::registry::Registry;

/// All of them.
pub fn registry() -> Arc<Registry> {
    let mut registry = Registry::new();
    registry.add_builtin();
    cowbell_host::add_drivers(&mut registry);
    registry.add(cowbell_qcow2::Qcow2Driver::default());
    Arc::new(registry)
}
