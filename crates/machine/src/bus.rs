//! The physical address space: RAM, ROM and devices, laid out as the `virt` board.

use crate::clock::Clock;
use crate::device::{Aclint, Finish, Plic, Rtc, Uart, decode_finish};
use crate::event::{Event, EventQueue};
use crate::port::{Console, ConsoleId, Disk, Network};
use crate::ram::Ram;
use crate::virtio::{Accepted, Kind, Notify, RingError, Transport};

/// Addresses, sizes and interrupt sources of the board.
pub mod board {
    /// Boot ROM.
    pub const ROM: u64 = 0x1000;
    /// Size of the boot ROM.
    pub const ROM_SIZE: u64 = 0x1000;
    /// Test finisher.
    pub const FINISHER: u64 = 0x10_0000;
    /// Real-time clock.
    pub const RTC: u64 = 0x10_1000;
    /// Interrupt source of the real-time clock.
    pub const RTC_IRQ: u32 = 11;
    /// Core-local interruptor.
    pub const CLINT: u64 = 0x200_0000;
    /// Size of the core-local interruptor.
    pub const CLINT_SIZE: u64 = 0x1_0000;
    /// Interrupt controller.
    pub const PLIC: u64 = 0xc00_0000;
    /// Size of the interrupt controller.
    pub const PLIC_SIZE: u64 = 0x60_0000;
    /// Serial port.
    pub const UART: u64 = 0x1000_0000;
    /// Interrupt source of the serial port.
    pub const UART_IRQ: u32 = 10;
    /// First virtio slot.
    pub const VIRTIO: u64 = 0x1000_1000;
    /// Number of virtio slots, a page each; slot n has interrupt source n + 1.
    pub const VIRTIO_SLOTS: usize = 8;
    /// Size of the small devices' windows.
    pub const WINDOW: u64 = 0x1000;
}

/// The doors to the outside that a machine was given.
pub struct Ports {
    /// Console output.
    pub console: Box<dyn Console>,
    /// Disks, in the order of their virtio slots.
    pub disks: Vec<Box<dyn Disk>>,
    /// The network, when there is a card.
    pub network: Option<Box<dyn Network>>,
}

impl Ports {
    /// A console, and nothing else.
    pub fn new(console: Box<dyn Console>) -> Ports {
        Ports { console, disks: Vec::new(), network: None }
    }
}

/// Everything a hart can reach.
pub struct Bus {
    /// Memory.
    pub ram: Ram,
    /// The clock.
    pub clock: Clock,
    /// Boot ROM.
    pub rom: Vec<u8>,
    /// Core-local interruptor.
    pub aclint: Aclint,
    /// Interrupt controller.
    pub plic: Plic,
    /// Serial port.
    pub uart: Uart,
    /// Real-time clock.
    pub rtc: Rtc,
    /// Virtio slots.
    pub virtio: Vec<Transport>,
    /// Set once the guest ended its run.
    pub finish: Option<Finish>,
    /// What is due.
    pub events: EventQueue,
    pub(crate) ports: Ports,
    /// A device was accessed since this was last cleared.
    pub(crate) touched: bool,
    /// `ecall` from supervisor mode is answered by the machine itself.
    pub(crate) builtin_sbi: bool,
    pub(crate) harts: usize,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Bus").field("ram", &self.ram).field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl Bus {
    pub(crate) fn new(ram: Ram, clock: Clock, harts: usize, rtc_start_ns: u64, ports: Ports) -> Bus {
        let mut ram = ram;
        ram.broadcast = harts > 1;
        Bus {
            ram,
            clock,
            rom: vec![0; board::ROM_SIZE as usize],
            aclint: Aclint::new(harts),
            plic: Plic::new(harts),
            uart: Uart::default(),
            rtc: Rtc::new(rtc_start_ns),
            virtio: vec![Transport::new(Kind::Empty); board::VIRTIO_SLOTS],
            finish: None,
            events: EventQueue::default(),
            ports,
            touched: false,
            builtin_sbi: false,
            harts,
        }
    }

    /// Puts the devices where they were at first, but for the clock, and for what is on its way.
    pub(crate) fn reset(&mut self, rtc_start_ns: u64) {
        self.rom.fill(0);
        self.aclint = Aclint::new(self.harts);
        self.plic = Plic::new(self.harts);
        self.uart = Uart::default();
        self.rtc = Rtc::new(rtc_start_ns);
        for slot in &mut self.virtio {
            slot.reset();
        }
        self.finish = None;
        self.touched = false;
        self.builtin_sbi = false;
    }

    /// Two bytes of code outside RAM.
    pub(crate) fn fetch_half(&self, address: u64) -> Option<u16> {
        if let Some(half) = self.ram.read_number(address, 2) {
            return Some(half as u16);
        }
        let at = address.checked_sub(board::ROM)? as usize;
        Some(u16::from_le_bytes([*self.rom.get(at)?, *self.rom.get(at + 1)?]))
    }

    /// What a debugger sees of memory, without touching any device: RAM and the boot ROM.
    pub(crate) fn peek(&self, address: u64, into: &mut [u8]) -> bool {
        if self.ram.read(address, into) {
            return true;
        }
        let Some(at) = address.checked_sub(board::ROM).and_then(|at| usize::try_from(at).ok()) else {
            return false;
        };
        let range = at.checked_add(into.len()).and_then(|end| self.rom.get(at..end));
        range.is_some_and(|bytes| {
            into.copy_from_slice(bytes);
            true
        })
    }

    /// Reads a device register, aligned. `None` is an access fault.
    pub(crate) fn read(&mut self, address: u64, size: usize) -> Option<u64> {
        self.touched = true;
        let word = size == 4;
        match address {
            board::ROM..0x2000 => {
                let at = (address - board::ROM) as usize;
                let bytes = self.rom.get(at..at + size)?;
                Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            }
            board::FINISHER..0x10_1000 if word => Some(0),
            board::RTC..0x10_2000 if word => {
                Some(self.rtc.read(address - board::RTC, self.clock.ns()).into())
            }
            board::CLINT..0x201_0000 if size >= 4 => {
                Some(self.aclint.read(address - board::CLINT, size, self.clock.ticks()).unwrap_or(0))
            }
            board::PLIC..0xc60_0000 if word => {
                Some(self.plic.read(address - board::PLIC).unwrap_or(0).into())
            }
            board::UART..0x1000_1000 => Some(self.uart.read(address - board::UART).into()),
            board::VIRTIO..0x1000_9000 => {
                let at = address - board::VIRTIO;
                let slot = &mut self.virtio[(at / board::WINDOW) as usize];
                let offset = at % board::WINDOW;
                (word || offset >= 0x100).then(|| slot.read(offset, size))
            }
            _ => None,
        }
    }

    /// Writes a device register, aligned. `false` is an access fault.
    pub(crate) fn write(&mut self, address: u64, size: usize, value: u64) -> bool {
        self.touched = true;
        let word = size == 4;
        match address {
            board::FINISHER..0x10_1000 if size >= 2 => {
                if address == board::FINISHER && self.finish.is_none() {
                    self.finish = decode_finish(value as u32);
                }
            }
            board::RTC..0x10_2000 if word => {
                self.rtc.write(address - board::RTC, value as u32, self.clock.ns());
            }
            board::CLINT..0x201_0000 if size >= 4 => {
                // Harts that do not exist have no registers; the window is there all the same.
                let _absent = self.aclint.write(address - board::CLINT, size, value);
            }
            board::PLIC..0xc60_0000 if word => {
                let _absent = self.plic.write(address - board::PLIC, value as u32);
            }
            board::UART..0x1000_1000 => {
                if let Some(byte) = self.uart.write(address - board::UART, value as u8) {
                    self.ports.console.write(ConsoleId::Uart, &[byte]);
                }
            }
            board::VIRTIO..0x1000_9000 => {
                let at = address - board::VIRTIO;
                let slot = (at / board::WINDOW) as usize;
                let offset = at % board::WINDOW;
                if !word && offset < 0x100 {
                    return false;
                }
                if let Some(Notify(queue)) = self.virtio[slot].write(offset, value as u32) {
                    self.notified(slot, queue);
                }
            }
            _ => return false,
        }
        true
    }

    /// A driver notified a queue: takes what is available from it.
    fn notified(&mut self, slot: usize, queue: usize) {
        let outcome = match &self.virtio[slot].kind {
            Kind::Block(_) => self.serve_block(slot),
            Kind::Console(_) => self.serve_console(slot, queue),
            Kind::Entropy(_) => self.serve_entropy(slot),
            // Buffers for receiving wait in their queue.
            Kind::Net(_) if queue == 0 => Ok(()),
            Kind::Net(_) => self.serve_transmit(slot),
            Kind::Empty => Ok(()),
        };
        if outcome.is_err() {
            self.virtio[slot].fail();
        }
    }

    fn serve_block(&mut self, slot: usize) -> Result<(), RingError> {
        let Bus { virtio, ram, clock, events, ports, .. } = self;
        let Transport { kind: Kind::Block(block), queues, .. } = &mut virtio[slot] else { return Ok(()) };
        let mut interrupt = false;
        while block.has_room() {
            let Some(chain) = queues[0].pop(ram)? else { break };
            let head = chain.head;
            match block.accept(ram, chain, clock.count)? {
                Accepted::Submit(token, request) => {
                    let delay = clock.instructions_in(block.latency.ns(&request));
                    events.push(clock.now() + delay.max(1), Event::DiskDue { slot, token });
                    ports.disks[block.port].submit(token, request);
                }
                Accepted::Answered(len) => interrupt |= queues[0].push(ram, head, len)?,
            }
        }
        if interrupt {
            virtio[slot].raise_used();
        }
        Ok(())
    }

    fn serve_console(&mut self, slot: usize, queue: usize) -> Result<(), RingError> {
        let Bus { virtio, ram, ports, .. } = self;
        let Transport { kind: Kind::Console(console), queues, .. } = &mut virtio[slot] else { return Ok(()) };
        let mut interrupt = false;
        if queue == 1 {
            while let Some(chain) = queues[1].pop(ram)? {
                ports.console.write(ConsoleId::Virtio, &chain.gather(ram));
                interrupt |= queues[1].push(ram, chain.head, 0)?;
            }
        } else {
            while !console.input.is_empty() {
                let Some(chain) = queues[0].pop(ram)? else { break };
                let len = (chain.writable_len().min(console.input.len() as u64)) as usize;
                let bytes: Vec<u8> = console.input.drain(..len).collect();
                let written = chain.scatter(ram, 0, &bytes) as u32;
                interrupt |= queues[0].push(ram, chain.head, written)?;
            }
        }
        if interrupt {
            virtio[slot].raise_used();
        }
        Ok(())
    }

    fn serve_entropy(&mut self, slot: usize) -> Result<(), RingError> {
        let Bus { virtio, ram, .. } = self;
        let Transport { kind: Kind::Entropy(entropy), queues, .. } = &mut virtio[slot] else { return Ok(()) };
        let mut interrupt = false;
        while let Some(chain) = queues[0].pop(ram)? {
            let bytes = entropy.take(chain.writable_len() as usize);
            let written = chain.scatter(ram, 0, &bytes) as u32;
            interrupt |= queues[0].push(ram, chain.head, written)?;
        }
        if interrupt {
            virtio[slot].raise_used();
        }
        Ok(())
    }

    fn serve_transmit(&mut self, slot: usize) -> Result<(), RingError> {
        let Bus { virtio, ram, ports, .. } = self;
        let Transport { kind: Kind::Net(net), queues, .. } = &mut virtio[slot] else { return Ok(()) };
        let mut interrupt = false;
        while let Some(chain) = queues[1].pop(ram)? {
            if let (Some(frame), Some(network)) = (net.transmitted(ram, &chain), &mut ports.network) {
                network.transmit(frame);
            }
            interrupt |= queues[1].push(ram, chain.head, 0)?;
        }
        if interrupt {
            virtio[slot].raise_used();
        }
        Ok(())
    }

    fn frame_arrives(&mut self, frame: &[u8]) {
        let Bus { virtio, ram, .. } = self;
        for transport in virtio {
            let Transport { kind: Kind::Net(net), queues, .. } = transport else { continue };
            match net.receive(ram, &mut queues[0], frame) {
                Ok(true) => transport.raise_used(),
                Ok(false) => {}
                Err(RingError) => transport.fail(),
            }
        }
    }

    /// Lets the events that are due strike. `false` when one has to wait for the host.
    pub(crate) fn strike_due(&mut self) -> bool {
        while let Some(event) = self.events.due(self.clock.now()) {
            match event.clone() {
                Event::Input { console: ConsoleId::Uart, bytes } => self.uart.receive(&bytes),
                Event::Input { console: ConsoleId::Virtio, bytes } => {
                    for slot in 0..self.virtio.len() {
                        if let Kind::Console(console) = &mut self.virtio[slot].kind {
                            console.receive(&bytes);
                            self.notified(slot, 0);
                        }
                    }
                }
                Event::Frame { bytes } => self.frame_arrives(&bytes),
                Event::DiskDue { slot, token } => {
                    if !self.finish_disk(slot, token) {
                        return false;
                    }
                }
            }
            self.events.pop();
        }
        true
    }

    fn finish_disk(&mut self, slot: usize, token: u64) -> bool {
        let Bus { virtio, ram, ports, .. } = self;
        let Transport { kind: Kind::Block(block), queues, .. } = &mut virtio[slot] else { return true };
        let Some(reply) = ports.disks[block.port].poll(token) else { return false };
        let Some((head, len)) = block.complete(ram, token, &reply) else { return true };
        match queues[0].push(ram, head, len) {
            Ok(true) => virtio[slot].raise_used(),
            Ok(false) => {}
            Err(RingError) => virtio[slot].fail(),
        }
        if matches!(&self.virtio[slot].kind, Kind::Block(block) if block.was_held_back()) {
            self.notified(slot, 0);
        }
        true
    }

    /// Carries the devices' interrupt lines to the interrupt controller.
    pub(crate) fn update_lines(&mut self) {
        self.rtc.advance(self.clock.ns());
        self.plic.set_level(board::UART_IRQ as usize, self.uart.interrupt());
        self.plic.set_level(board::RTC_IRQ as usize, self.rtc.interrupt());
        for (slot, transport) in self.virtio.iter().enumerate() {
            self.plic.set_level(slot + 1, transport.interrupt());
        }
    }

    /// A hart dropped all its translations; with no other hart, no table needs watching.
    pub(crate) fn translations_dropped(&mut self, _hart: u64) {
        if self.harts == 1 {
            self.ram.forget_tables();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::{MemDisk, NoConsole};
    use crate::ram::RAM_BASE;
    use crate::virtio::{Block, DiskLatency, Entropy, Net, Queue, VirtioConsole};
    use proptest::prelude::*;

    fn bus() -> Bus {
        let disk = MemDisk::new(vec![0; 64 << 10]);
        let ports = Ports { disks: vec![Box::new(disk)], ..Ports::new(Box::new(NoConsole)) };
        let mut bus = Bus::new(Ram::new(64 << 10).expect("memory"), Clock::new(0), 2, 0, ports);
        let block = Block::new(0, 64 << 10, false, DiskLatency::default());
        let kinds = [
            Kind::Block(block),
            Kind::Console(VirtioConsole::default()),
            Kind::Entropy(Entropy::new(1)),
            Kind::Net(Net::new([2; 6])),
        ];
        for (slot, kind) in bus.virtio.iter_mut().zip(kinds) {
            *slot = Transport::new(kind);
        }
        bus
    }

    /// An access that a driver gone mad could make: mostly to virtio registers, with values that are often
    /// addresses in RAM or small.
    fn access() -> impl Strategy<Value = (u64, usize, u64, bool)> {
        let windows = prop_oneof![
            4 => (board::VIRTIO..board::VIRTIO + 0x4000).prop_map(|address| address & !0xe00),
            1 => board::ROM..0x10_2000u64,
            1 => board::CLINT..board::CLINT + board::CLINT_SIZE,
            1 => board::PLIC..board::PLIC + 0x3000,
            1 => (board::PLIC + 0x20_0000)..(board::PLIC + 0x20_6000),
            1 => board::UART..board::UART + 0x100,
            1 => any::<u64>(),
        ];
        let value = prop_oneof![any::<u64>(), 0..16u64, (0..0x1_0000u64).prop_map(|at| RAM_BASE + at)];
        (windows, 0..4u32, value, any::<bool>()).prop_map(|(address, shift, value, store)| {
            (address & !((1 << shift) - 1), 1 << shift, value, store)
        })
    }

    struct Sent(std::sync::mpsc::Sender<Vec<u8>>);

    impl Network for Sent {
        fn transmit(&mut self, frame: Vec<u8>) {
            self.0.send(frame).expect("the test listens");
        }
    }

    /// A card whose queues have one descriptor each, made available.
    #[test]
    fn frames_go_out_and_come_in_whole() {
        const RECEIVE: u64 = RAM_BASE;
        const TRANSMIT: u64 = RAM_BASE + 0x1000;
        let (sender, sent) = std::sync::mpsc::channel();
        let mut bus = bus();
        bus.ports.network = Some(Box::new(Sent(sender)));
        for (index, (at, writable)) in [(RECEIVE, 2u16), (TRANSMIT, 0)].into_iter().enumerate() {
            let descriptor = [&(at + 0x800).to_le_bytes()[..], &32u32.to_le_bytes(), &writable.to_le_bytes()];
            bus.ram.write(at, &descriptor.concat());
            bus.ram.write(at + 0x102, &1u16.to_le_bytes());
            let queue = &mut bus.virtio[3].queues[index];
            let (available, used) = (at + 0x100, at + 0x200);
            *queue = Queue::default();
            (queue.size, queue.ready) = (4, true);
            (queue.descriptors, queue.available, queue.used) = (at, available, used);
        }
        bus.ram.write(TRANSMIT + 0x80c, b"twenty bytes of data");
        assert!(bus.write(board::VIRTIO + 0x3050, 4, 1));
        assert_eq!(sent.try_recv().as_deref(), Ok(&b"twenty bytes of data"[..]));
        for frame in [&b"a frame"[..], b"one without a buffer"] {
            bus.events.push(0, Event::Frame { bytes: frame.to_vec() });
        }
        assert!(bus.strike_due());
        let mut got = [0; 20];
        bus.ram.read(RECEIVE + 0x800, &mut got);
        assert_eq!(&got, b"\0\0\0\0\0\0\0\0\0\0\x01\0a frame\0");
        assert_eq!(bus.ram.read_number(RECEIVE + 0x208, 4), Some(19));
        let Kind::Net(net) = &bus.virtio[3].kind else { panic!("a network card") };
        assert_eq!(net.dropped, 1);
        assert!(bus.virtio[3].interrupt());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn devices_survive_any_driver(seed: u64, accesses in prop::collection::vec(access(), 1..400)) {
            let mut bus = bus();
            bus.ram.write(RAM_BASE, &Entropy::new(seed).take(64 << 10));
            for (address, size, value, store) in accesses {
                if store {
                    bus.write(address, size, value);
                } else {
                    bus.read(address, size);
                }
                bus.clock.count += value % 10_000;
                prop_assert!(bus.strike_due());
                bus.update_lines();
            }
        }
    }
}
