//! Loads and stores: to RAM by way of the TLBs, to devices, across pages.

use crate::bus::Bus;
use crate::hart::Hart;
use crate::mmu::{AccessKind, translate};
use crate::ram::{PAGE, Ram};
use crate::tlb::store_index;
use crate::trap::Trap;

fn crosses_page(va: u64, size: usize) -> bool {
    (va & (PAGE - 1)) + size as u64 > PAGE
}

/// Loads from RAM when that is all there is to it; `None` for faults, devices, and accesses across pages.
pub(crate) fn load_ram(hart: &mut Hart, ram: &mut Ram, va: u64, size: usize) -> Option<u64> {
    if crosses_page(va, size) {
        return None;
    }
    let translated = translate(hart, ram, va, size as u64, AccessKind::Load).ok()?;
    let page = ram.page_of(translated.address)?;
    if translated.whole_page {
        hart.tlb.fill_load(hart.data_mode, va, page);
    }
    let address = translated.address;
    Some(match size {
        _ if !address.is_multiple_of(size as u64) => return ram.read_number(address, size),
        1 => ram.load::<1>(page, address),
        2 => ram.load::<2>(page, address),
        4 => ram.load::<4>(page, address),
        _ => ram.load::<8>(page, address),
    })
}

/// Stores to RAM when that is all there is to it; `false`, and nothing done, otherwise.
pub(crate) fn store_ram(hart: &mut Hart, ram: &mut Ram, va: u64, size: usize, value: u64) -> bool {
    if crosses_page(va, size) {
        return false;
    }
    let Ok(translated) = translate(hart, ram, va, size as u64, AccessKind::Store) else { return false };
    let Some(page) = ram.page_of(translated.address) else { return false };
    let address = translated.address;
    if ram.watchers(page) != 0 || !address.is_multiple_of(size as u64) {
        return ram.write(address, &value.to_le_bytes()[..size]);
    }
    if translated.whole_page {
        ram.set_cached(page, store_index(va));
        hart.tlb.fill_store(hart.data_mode, va, page);
    }
    match size {
        1 => ram.store_unwatched::<1>(page, address, value),
        2 => ram.store_unwatched::<2>(page, address, value),
        4 => ram.store_unwatched::<4>(page, address, value),
        _ => ram.store_unwatched::<8>(page, address, value),
    }
    true
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
