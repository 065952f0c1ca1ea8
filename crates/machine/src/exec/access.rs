//! Loads and stores: to RAM by way of the TLBs, to devices, across pages.

use crate::bus::Bus;
use crate::hart::Hart;
use crate::mmu::{AccessKind, translate};
use crate::ram::{PAGE, Ram};
use crate::tlb::store_index;
use crate::trap::{Cause, Trap};

fn crosses_page(va: u64, size: usize) -> bool {
    (va & (PAGE - 1)) + size as u64 > PAGE
}

/// Loads from RAM when that is all there is to it; `None` for faults, devices, and accesses across pages.
pub(crate) fn load_ram(hart: &mut Hart, ram: &mut Ram, va: u64, size: usize) -> Option<u64> {
    if crosses_page(va, size) {
        return None;
    }
    let address = find_ram(hart, ram, va, size as u64, AccessKind::Load).ok()??;
    ram.read_number(address, size)
}

/// Stores to RAM when that is all there is to it; `false`, and nothing done, otherwise.
pub(crate) fn store_ram(hart: &mut Hart, ram: &mut Ram, va: u64, size: usize, value: u64) -> bool {
    if crosses_page(va, size) {
        return false;
    }
    match find_ram(hart, ram, va, size as u64, AccessKind::Store) {
        Ok(Some(address)) => ram.write(address, &value.to_le_bytes()[..size]),
        _ => false,
    }
}

/// Where in RAM an access of `size` bytes inside a page goes. Remembers it for the fast path. `None` for devices.
///
/// # Errors
/// The cause of the trap that the access takes.
pub(crate) fn find_ram(
    hart: &mut Hart,
    ram: &mut Ram,
    va: u64,
    size: u64,
    kind: AccessKind,
) -> Result<Option<u64>, Cause> {
    let mode = hart.data_mode;
    let known =
        if kind == AccessKind::Store { hart.tlb.store::<1>(mode, va) } else { hart.tlb.load::<1>(mode, va) };
    if let Some(page) = known {
        return Ok(Some(Ram::address_of(page) + va % PAGE));
    }
    let translated = translate(hart, ram, va, size, kind)?;
    let Some(page) = ram.page_of(translated.address) else { return Ok(None) };
    match kind {
        _ if !translated.whole_page => {}
        AccessKind::Store if ram.watchers(page) == 0 => {
            ram.set_cached(page, store_index(va));
            hart.tlb.fill_store(mode, va, page);
        }
        AccessKind::Load => hart.tlb.fill_load(mode, va, page),
        _ => {}
    }
    Ok(Some(translated.address))
}

/// Loads `size` bytes, zero-extended. Misaligned loads from memory are done; devices want alignment.
///
/// # Errors
/// The trap that the load takes.
pub fn load(hart: &mut Hart, bus: &mut Bus, va: u64, size: usize) -> Result<u64, Trap> {
    if let Some(value) = load_ram(hart, &mut bus.ram, va, size) {
        return Ok(value);
    }
    let (addresses, split) = locate(hart, bus, va, size, AccessKind::Load)?;
    let fault = Trap { cause: AccessKind::Load.access_fault(), value: va };
    if split == size {
        return match bus.ram.read_number(addresses[0], size) {
            Some(value) => Ok(value),
            None if va.is_multiple_of(size as u64) => bus.read(addresses[0], size).ok_or(fault),
            None => Err(fault),
        };
    }
    let low = bus.ram.read_number(addresses[0], split).ok_or(fault)?;
    let high = bus.ram.read_number(addresses[1], size - split).ok_or(fault)?;
    Ok(low | high << (8 * split))
}

/// Stores the low `size` bytes of `value`. Nothing is written when any part of it faults.
///
/// # Errors
/// The trap that the store takes.
pub fn store(hart: &mut Hart, bus: &mut Bus, va: u64, size: usize, value: u64) -> Result<(), Trap> {
    if store_ram(hart, &mut bus.ram, va, size, value) {
        return Ok(());
    }
    let (addresses, split) = locate(hart, bus, va, size, AccessKind::Store)?;
    let fault = Trap { cause: AccessKind::Store.access_fault(), value: va };
    let bytes = &value.to_le_bytes()[..size];
    if split == size {
        if bus.ram.write(addresses[0], bytes) {
            return Ok(());
        }
        let aligned = va.is_multiple_of(size as u64);
        return if aligned && bus.write(addresses[0], size, value) { Ok(()) } else { Err(fault) };
    }
    let all_ram =
        bus.ram.contains(addresses[0], split as u64) && bus.ram.contains(addresses[1], (size - split) as u64);
    if !all_ram {
        return Err(fault);
    }
    bus.ram.write(addresses[0], &bytes[..split]);
    bus.ram.write(addresses[1], &bytes[split..]);
    Ok(())
}

/// The physical addresses of both parts of an access, and how many bytes lie in the first page.
fn locate(
    hart: &mut Hart,
    bus: &mut Bus,
    va: u64,
    size: usize,
    kind: AccessKind,
) -> Result<([u64; 2], usize), Trap> {
    let mut find = |va: u64, size: usize| {
        translate(hart, &mut bus.ram, va, size as u64, kind)
            .map(|translated| translated.address)
            .map_err(|cause| Trap { cause, value: va })
    };
    if !crosses_page(va, size) {
        return Ok(([find(va, size)?, 0], size));
    }
    let split = (PAGE - (va & (PAGE - 1))) as usize;
    let first = find(va, split)?;
    let second = find(va.wrapping_add(split as u64), size - split)?;
    Ok(([first, second], split))
}
