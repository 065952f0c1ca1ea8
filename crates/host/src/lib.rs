//! The real world: files, block devices, locks, executors.
