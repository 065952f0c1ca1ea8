//! The drivers of this program.

use std::sync::Arc;

use cowbell_block::blkdebug::BlkdebugDriver;
use cowbell_block::blkverify::BlkverifyDriver;
use cowbell_block::quorum::QuorumDriver;
use cowbell_block::registry::Registry;
use cowbell_luks::LuksDriver;
use cowbell_qcow2::Qcow2Driver;
use cowbell_vpc::VpcDriver;

use crate::out::{Printer, complain};

/// All of them. What nodes have to say goes to `printer`, or to standard error.
pub fn registry(printer: &Printer) -> Arc<Registry> {
    let mut registry = Registry::new();
    registry.add_builtin();
    cowbell_host::add_drivers(&mut registry);
    registry.add(Qcow2Driver::with_notice(Arc::new(|line: &str| complain(line))));
    registry.add(LuksDriver);
    registry.add(VpcDriver);
    let own = printer.clone();
    registry.add(BlkdebugDriver::with_notice(Arc::new(move |line: &str| own.put(&format!("{line}\n")))));
    let own = printer.clone();
    let abort = Arc::new(move || {
        // What was printed before belongs before the end.
        own.flush();
        std::process::exit(1)
    });
    registry.add(BlkverifyDriver::new(Arc::new(|line: &str| complain(line)), abort.clone()));
    registry.add(QuorumDriver::new(Arc::new(|line: &str| complain(line)), abort));
    crate::absent::add_drivers(&mut registry);
    Arc::new(registry)
}
