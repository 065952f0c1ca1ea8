//! The digest of the whole architectural state: the test of the law.
//!
//! Devices are hashed by their derived `Hash`, harts field by field in a pattern that names every field: one added
//! later does not compile until it is decided whether it is state.

use crate::bus::Bus;
use crate::hart::Hart;
use crate::machine::Machine;
use std::hash::{Hash, Hasher};
use xxhash_rust::xxh3::Xxh3;

impl Machine {
    /// A digest of memory, registers, devices, clock and queue. Equal runs have equal digests, whatever engine,
    /// block shape or cache contents they had.
    pub fn digest(&self) -> u128 {
        let mut hasher = Xxh3::new();
        for hart in self.harts() {
            hash_hart(hart, &mut hasher);
        }
        self.turn().hash(&mut hasher);
        hash_bus(self.bus(), &mut hasher);
        hasher.digest128()
    }
}

fn hash_hart(hart: &Hart, hasher: &mut impl Hasher) {
    let Hart {
        id,
        x,
        f,
        pc,
        privilege,
        csr,
        reservation,
        run_state,
        // Caches and scratch, functions of the rest or of no consequence.
        tlb: _,
        data_mode: _,
        fetch_mode: _,
        float_ready: _,
        executed: _,
    } = hart;
    x[..32].hash(hasher);
    f[..32].hash(hasher);
    (id, pc, privilege, csr, reservation, run_state).hash(hasher);
}

fn hash_bus(bus: &Bus, hasher: &mut impl Hasher) {
    let Bus {
        ram,
        clock,
        rom,
        aclint,
        plic,
        uart,
        rtc,
        virtio,
        finish,
        events,
        builtin_sbi,
        // The outside, scratch, and an option that the turn already shows.
        ports: _,
        touched: _,
        harts: _,
    } = bus;
    hasher.write(ram.bytes());
    (clock, rom, aclint, plic, uart, rtc, virtio, finish, events, builtin_sbi).hash(hasher);
}
