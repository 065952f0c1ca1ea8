//! The fast engine: blocks decoded once into micro-operations, chained, run to exact budgets.
//!
//! A block lies in one page, is keyed by its physical address, and ends at a jump, at an instruction that only
//! the plain executor ([`exec`]) knows, or at the page's end; forward branches it passes as if they were never taken.
//! Micro-operations do what can be done with registers and RAM; one that meets anything else (a fault, a device, a
//! watched page) leaves the block *before* its instruction, and the plain executor takes that one. A block is entered
//! only when it fits into the budget; what does not fit is run one by one. So the engine stops at exactly its count, and
//! differs from the plain executor in speed alone.
//!
//! Links between blocks exist only inside a page: there the translation that led to the first holds for the next,
//! because every change of a translation leaves the engine. All other jumps go through the jump cache, which knows
//! nothing that is not in the fetch TLB: before each run it forgets the pages that went from there.

mod build;
mod float_ops;
mod fuse;
mod int_ops;
mod mem_ops;
mod system_ops;
mod uop;

use crate::bus::Bus;
use crate::exec::{self, Step, fetch_page};
use crate::hart::Hart;
use crate::ram::{PAGE, Ram};
pub use build::LEN_MAX;
use build::WAYS;

use uop::{Flow, Uop};

/// Why the engine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The budget is used up, exactly.
    Budget,
    /// Interrupts, privilege or devices may stand differently.
    Changed,
    /// The hart waits for an interrupt.
    Wait,
    /// A call to the built-in SBI; the pc points at it.
    Sbi,
    /// A store concerns decoded code or translations: see [`crate::ram::Attention`].
    Attention,
}

/// A way to execute instructions. All ways are equal but in speed; [`Plain`] says what is right, and a compiler
/// would come in here.
pub trait Tier: Send {
    /// Runs at most `budget` instructions, at least one, and counts them. Stops early for what [`Stop`] names, and
    /// before an instruction with a breakpoint, unless it is the first.
    fn run(&mut self, hart: &mut Hart, bus: &mut Bus, budget: u64) -> Stop;

    /// Replaces the set of breakpoints, given in ascending order.
    fn set_breakpoints(&mut self, sorted: &[u64], ram: &mut Ram);

    /// Forgets what was decoded from a page.
    fn forget_page(&mut self, page: u32, ram: &mut Ram);

    /// Forgets everything that was decoded.
    fn clear(&mut self, ram: &mut Ram);
}

/// One instruction at a time, straight from memory.
#[derive(Debug, Default)]
pub struct Plain {
    breakpoints: Vec<u64>,
}

impl Tier for Plain {
    fn run(&mut self, hart: &mut Hart, bus: &mut Bus, budget: u64) -> Stop {
        let end = bus.clock.count + budget;
        while bus.clock.count < end {
            match exec::step(hart, bus) {
                Step::Changed => return Stop::Changed,
                Step::Wait => return Stop::Wait,
                Step::Sbi => return Stop::Sbi,
                Step::Done if !bus.ram.attention.is_empty() => return Stop::Attention,
                Step::Done if self.breakpoints.binary_search(&hart.pc).is_ok() => return Stop::Changed,
                Step::Done => {}
            }
        }
        Stop::Budget
    }

    fn set_breakpoints(&mut self, sorted: &[u64], _: &mut Ram) {
        self.breakpoints = sorted.to_vec();
    }

    fn forget_page(&mut self, page: u32, ram: &mut Ram) {
        ram.forget_code(page);
    }

    fn clear(&mut self, _: &mut Ram) {}
}

/// No block.
const NONE: u32 = u32::MAX;
/// No block, and none may be linked: the successor lies in another page.
const UNLINKABLE: u32 = u32::MAX - 1;
/// Length of a block that was overwritten: it fits into no budget.
const DEAD: u32 = u32::MAX;
/// Blocks held before all are dropped; about 150 MB.
const BLOCKS_MAX: usize = 400_000;
const JUMPS: usize = 4096;
/// Slots among which the jumps to one page lie.
const JUMPS_OF_PAGE: usize = PAGE as usize / 2;

struct Block {
    /// Instructions.
    len: u32,
    /// Successors inside the page, by the first of [`Flow`].
    links: [u32; WAYS],
    ops: Box<[Uop]>,
}

#[derive(Clone, Copy)]
struct Jump {
    pc: u64,
    /// Generation and mode of the fetch TLB.
    key: u32,
    block: u32,
}

/// Why a chain of blocks ended.
enum Chain {
    /// The plain executor has to take the instruction at the pc.
    Plain,
    /// The same, and these are its bits.
    System(u32),
    /// Nothing is known about the pc.
    Lookup,
    /// A block was left by a slot that is not linked yet.
    Follow { block: u32, slot: usize },
}

/// Whose turn it is.
enum Turn {
    Blocks,
    /// The plain executor's.
    Plain,
    /// The plain executor's, for the instruction with these bits.
    System(u32),
}

const NO_JUMP: Jump = Jump { pc: u64::MAX, key: 0, block: NONE };

/// Decoded code.
pub struct Blocks {
    blocks: Vec<Block>,
    /// For each page of RAM, the block that starts at each half-word.
    pages: Vec<Option<Box<[u32]>>>,
    jumps: Box<[Jump; JUMPS]>,
    /// The hart that the jump cache belongs to, and the part of its generation that the keys leave out.
    jumps_of: (u64, u64),
    len_max: u32,
    breakpoints: Vec<u64>,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Blocks").field("blocks", &self.blocks.len()).finish_non_exhaustive()
    }
}

#[inline(always)]
fn jump_slot(pc: u64) -> usize {
    (pc >> 1 ^ pc >> 13) as usize & (JUMPS - 1)
}

#[inline(always)]
fn jump_key(hart: &Hart) -> u32 {
    (hart.tlb.fetch_generation as u32) << 3 | hart.fetch_mode as u32
}

impl Tier for Blocks {
    /// Blocks end before these addresses, whose instructions are run one by one.
    fn set_breakpoints(&mut self, sorted: &[u64], ram: &mut Ram) {
        self.breakpoints = sorted.to_vec();
        self.clear(ram);
    }

    fn clear(&mut self, ram: &mut Ram) {
        for (page, ids) in self.pages.iter().enumerate() {
            if ids.is_some() {
                ram.forget_code(page as u32);
            }
        }
        self.pages.clear();
        self.blocks.clear();
        self.jumps.fill(NO_JUMP);
    }

    fn forget_page(&mut self, page: u32, ram: &mut Ram) {
        ram.forget_code(page);
        let Some(ids) = self.pages.get_mut(page as usize).and_then(Option::take) else { return };
        for id in ids.into_iter().filter(|id| *id != NONE) {
            let block = &mut self.blocks[id as usize];
            block.len = DEAD;
            block.ops = Box::default();
        }
    }

    fn run(&mut self, hart: &mut Hart, bus: &mut Bus, budget: u64) -> Stop {
        let jumps_of = (hart.id, hart.tlb.fetch_generation >> 29);
        if self.jumps_of != jumps_of {
            self.jumps_of = jumps_of;
            self.jumps.fill(NO_JUMP);
        }
        for page in hart.tlb.fetch_gone.drain(..) {
            self.forget_jumps(page);
        }
        let end = bus.clock.count + budget;
        let mut left = budget;
        let mut first = true;
        loop {
            // Here nothing is known about the pc.
            bus.clock.count = end - left;
            if left == 0 {
                return Stop::Budget;
            }
            let mut id = NONE;
            if self.is_breakpoint_offset(hart.pc) {
                if !first && self.breakpoints.binary_search(&hart.pc).is_ok() {
                    return Stop::Changed;
                }
            } else {
                id = self.lookup(hart, bus);
            }
            first = false;
            let turn = if id == NONE { Turn::Plain } else { self.run_chain(hart, bus, id, &mut left) };
            bus.clock.count = end - left;
            if !bus.ram.attention.is_empty() {
                return Stop::Attention;
            }
            if left == 0 {
                return Stop::Budget;
            }
            let step = match turn {
                Turn::Blocks => continue,
                Turn::Plain => exec::step(hart, bus),
                Turn::System(bits) => exec::step_fetched(hart, bus, bits),
            };
            left -= 1;
            match step {
                Step::Changed => return Stop::Changed,
                Step::Wait => return Stop::Wait,
                Step::Sbi => return Stop::Sbi,
                Step::Done if !bus.ram.attention.is_empty() => return Stop::Attention,
                Step::Done => {}
            }
        }
    }
}

impl Blocks {
    /// Nothing decoded yet; blocks will have at most `len_max` instructions, or [`LEN_MAX`].
    pub fn new(len_max: u32) -> Blocks {
        let len_max = len_max.clamp(1, LEN_MAX);
        let jumps = vec![NO_JUMP; JUMPS].into_boxed_slice().try_into();
        let jumps = jumps.unwrap_or_else(|_| Box::new([NO_JUMP; JUMPS]));
        Blocks {
            blocks: Vec::new(),
            pages: Vec::new(),
            jumps,
            jumps_of: (0, 0),
            len_max,
            breakpoints: Vec::new(),
        }
    }

    /// Runs blocks from `id` on, and says who goes on.
    fn run_chain(&mut self, hart: &mut Hart, bus: &mut Bus, mut id: u32, left: &mut u64) -> Turn {
        loop {
            match self.run_linked(hart, &mut bus.ram, id, left) {
                Chain::Plain => return Turn::Plain,
                Chain::System(bits) => return Turn::System(bits),
                Chain::Lookup => return Turn::Blocks,
                Chain::Follow { block, slot } => match self.follow(hart, bus, block, slot) {
                    NONE => return Turn::Blocks,
                    next => id = next,
                },
            }
        }
    }

    /// The hot loop: runs blocks as long as it is known which comes next and there is budget for it.
    #[inline(never)]
    fn run_linked(&self, hart: &mut Hart, ram: &mut Ram, mut id: u32, left: &mut u64) -> Chain {
        let mut remaining = *left;
        let end = loop {
            let block = &self.blocks[id as usize];
            let Some(after) = remaining.checked_sub(block.len.into()) else {
                // Overwritten, or longer than the budget.
                break if block.len == DEAD { Chain::Lookup } else { Chain::Plain };
            };
            let Some((first, rest)) = block.ops.split_first() else { break Chain::Lookup };
            let flow = (first.run)(hart, ram, first, rest);
            if flow as u8 <= Flow::Fall as u8 {
                remaining = after;
                let next = block.links[flow as usize & 1];
                if next < UNLINKABLE {
                    id = next;
                    continue;
                }
                if next == NONE {
                    break Chain::Follow { block: id, slot: flow as usize & 1 };
                }
            } else if flow == Flow::Indirect {
                remaining = after;
            } else {
                remaining -= u64::from(hart.executed);
                match flow {
                    Flow::FirstExit | Flow::SecondExit => {
                        let next = block.links[flow as usize & (WAYS - 1)];
                        if next < UNLINKABLE {
                            id = next;
                            continue;
                        }
                        break Chain::Follow { block: id, slot: flow as usize };
                    }
                    Flow::Before => break Chain::Plain,
                    Flow::System => break Chain::System(block.ops.last().map_or(0, |op| op.imm as u32)),
                    _ => break Chain::Lookup,
                }
            }
            let jump = &self.jumps[jump_slot(hart.pc)];
            if jump.pc != hart.pc || jump.key != jump_key(hart) {
                break Chain::Lookup;
            }
            id = jump.block;
        };
        *left = remaining;
        end
    }

    /// Finds the block at the pc after leaving block `id` by `slot`, and links them if they share a page.
    fn follow(&mut self, hart: &mut Hart, bus: &mut Bus, id: u32, slot: usize) -> u32 {
        if self.is_breakpoint_offset(hart.pc) {
            return NONE;
        }
        let generation = self.blocks.len();
        let next = self.lookup(hart, bus);
        // A lookup may have dropped everything, and then `id` names nothing.
        if next == NONE || self.blocks.len() < generation {
            return next;
        }
        let link = &mut self.blocks[id as usize].links[slot];
        if *link == NONE {
            *link = next;
        }
        next
    }

    /// The block at the pc, built if need be. `NONE` when its first instruction is one for the plain executor.
    fn lookup(&mut self, hart: &mut Hart, bus: &mut Bus) -> u32 {
        let (pc, key) = (hart.pc, jump_key(hart));
        let jump = &self.jumps[jump_slot(pc)];
        if jump.pc == pc && jump.key == key && self.blocks[jump.block as usize].len != DEAD {
            return jump.block;
        }
        let Some(page) = fetch_page(hart, bus, pc) else { return NONE };
        let block = self.block_at(hart, &mut bus.ram, page, pc & (PAGE - 1));
        if block != NONE {
            // The fill above may have changed the generation.
            self.jumps[jump_slot(pc)] = Jump { pc, key: jump_key(hart), block };
        }
        block
    }

    fn block_at(&mut self, hart: &mut Hart, ram: &mut Ram, page: u32, offset: u64) -> u32 {
        let index = (offset / 2) as usize;
        if let Some(Some(ids)) = self.pages.get(page as usize)
            && ids[index] != NONE
        {
            return ids[index];
        }
        if self.blocks.len() >= BLOCKS_MAX {
            self.clear(ram);
        }
        let Some(bytes) = ram.page(page) else { return NONE };
        let limit = self.next_breakpoint_offset(offset);
        let built = build::block(bytes, offset, limit, self.len_max);
        if built.bytes != 0 && ram.watch_code(page, offset, built.bytes) {
            hart.obey_watches(ram);
        }
        let id = self.blocks.len() as u32;
        let links = built.stays_in_page.map(|stays| if stays { NONE } else { UNLINKABLE });
        self.blocks.push(Block { len: built.len, links, ops: built.ops });
        if self.pages.len() <= page as usize {
            self.pages.resize_with(page as usize + 1, || None);
        }
        self.pages[page as usize].get_or_insert_with(|| vec![NONE; PAGE as usize / 2].into())[index] = id;
        id
    }

    /// Forgets where jumps to a page of the address space lead.
    fn forget_jumps(&mut self, page: u64) {
        // Offsets change only the bits below 11 of a slot.
        let half = jump_slot(page) & !(JUMPS_OF_PAGE - 1);
        let jumps = &mut self.jumps[half..half + JUMPS_OF_PAGE];
        for jump in jumps.iter_mut().filter(|jump| jump.pc & !(PAGE - 1) == page) {
            *jump = NO_JUMP;
        }
    }

    fn is_breakpoint_offset(&self, pc: u64) -> bool {
        self.breakpoints.iter().any(|address| (address ^ pc) & (PAGE - 1) == 0)
    }

    /// Page offset before which a block starting at `offset` must end.
    fn next_breakpoint_offset(&self, offset: u64) -> u64 {
        let offsets = self.breakpoints.iter().map(|address| address & (PAGE - 1));
        offsets.filter(|at| *at > offset).min().unwrap_or(PAGE)
    }
}
