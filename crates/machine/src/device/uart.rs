//! A 16550A UART. What is sent is out at once; what comes in waits on the line, of which the FIFO is the beginning.

use std::collections::VecDeque;

/// Bytes of input held for a guest that does not read; more is dropped, as a real line would.
const INPUT_MAX: usize = 64 << 10;

/// Bytes that the chip itself holds: what a driver throws away when it clears the FIFO. The rest is still on the line,
/// so that what is typed ahead of a booting kernel is not lost.
const FIFO: usize = 16;

const IER_RECEIVE: u8 = 1;
const IER_TRANSMIT: u8 = 2;
const LCR_DIVISOR: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;

/// State of the UART.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uart {
    input: VecDeque<u8>,
    interrupt_enable: u8,
    fifo_enabled: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    /// The transmitter became empty and nobody has looked yet.
    transmit_pending: bool,
}

impl Uart {
    /// Bytes arrive from outside.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend(&bytes[..bytes.len().min(self.room())]);
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        INPUT_MAX.saturating_sub(self.input.len())
    }

    /// Whether the interrupt line is up.
    pub fn interrupt(&self) -> bool {
        self.identify() & 1 == 0
    }

    fn identify(&self) -> u8 {
        let fifo = if self.fifo_enabled { 0xc0 } else { 0 };
        if self.interrupt_enable & IER_RECEIVE != 0 && !self.input.is_empty() {
            fifo | 0x04
        } else if self.interrupt_enable & IER_TRANSMIT != 0 && self.transmit_pending {
            fifo | 0x02
        } else {
            fifo | 0x01
        }
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u8 {
        let divisor_open = self.line_control & LCR_DIVISOR != 0;
        match offset & 7 {
            0 if divisor_open => self.divisor as u8,
            0 => self.input.pop_front().unwrap_or(0),
            1 if divisor_open => (self.divisor >> 8) as u8,
            1 => self.interrupt_enable,
            2 => {
                let identity = self.identify();
                if identity & 0x0f == 0x02 {
                    self.transmit_pending = false;
                }
                identity
            }
            3 => self.line_control,
            4 => self.modem_control,
            // The transmitter is always empty.
            5 => 0x60 | u8::from(!self.input.is_empty()),
            6 if self.modem_control & MCR_LOOP != 0 => self.looped_modem_status(),
            6 => 0xb0,
            _ => self.scratch,
        }
    }

    /// In loop-back the modem's outputs are its inputs.
    fn looped_modem_status(&self) -> u8 {
        let out = self.modem_control;
        (out & 2) << 3 | (out & 1) << 5 | (out & 4) << 4 | (out & 8) << 4
    }

    /// Writes a register; a byte that was sent comes back.
    pub fn write(&mut self, offset: u64, value: u8) -> Option<u8> {
        let divisor_open = self.line_control & LCR_DIVISOR != 0;
        match offset & 7 {
            0 if divisor_open => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => {
                self.transmit_pending = true;
                if self.modem_control & MCR_LOOP != 0 {
                    self.receive(&[value]);
                    return None;
                }
                return Some(value);
            }
            1 if divisor_open => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            1 => {
                // Enabling the interrupt of an empty transmitter raises it.
                if value & !self.interrupt_enable & IER_TRANSMIT != 0 {
                    self.transmit_pending = true;
                }
                self.interrupt_enable = value & 0x0f;
            }
            2 => {
                self.fifo_enabled = value & 1 != 0;
                if value & 2 != 0 {
                    self.input.drain(..self.input.len().min(FIFO));
                }
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uart: &mut Uart, offset: u64, expect: u8) {
        assert_eq!(uart.read(offset), expect, "register {offset}");
    }

    #[test]
    fn interrupts_identify_themselves() {
        let mut uart = Uart::default();
        check(&mut uart, 2, 0x01);
        uart.write(1, 3);
        assert!(uart.interrupt());
        check(&mut uart, 2, 0x02);
        check(&mut uart, 2, 0x01);
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
        uart.receive(b"ab");
        check(&mut uart, 2, 0x04);
        check(&mut uart, 5, 0x61);
        check(&mut uart, 0, b'a');
        check(&mut uart, 0, b'b');
        check(&mut uart, 5, 0x60);
        check(&mut uart, 2, 0x02);
        assert!(!uart.interrupt());
    }

    #[test]
    fn clearing_the_fifo_leaves_what_is_on_the_line() {
        let mut uart = Uart::default();
        uart.receive(b"0123456789abcdefGH");
        uart.write(2, 3);
        check(&mut uart, 0, b'G');
        uart.write(2, 3);
        check(&mut uart, 5, 0x60);
    }

    #[test]
    fn loop_back_and_scratch_are_what_drivers_probe() {
        let mut uart = Uart::default();
        uart.write(7, 0x5a);
        check(&mut uart, 7, 0x5a);
        uart.write(4, 0x1a);
        check(&mut uart, 6, 0x90);
        uart.write(3, 0x80);
        uart.write(0, 0x34);
        uart.write(1, 0x12);
        check(&mut uart, 0, 0x34);
        check(&mut uart, 1, 0x12);
    }
}
