//! The goldfish real-time clock: nanoseconds since 1970, which here means a start value plus the clock.

/// State of the clock chip.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rtc {
    /// Nanoseconds since 1970 when the machine's clock stood at zero.
    pub start_ns: u64,
    /// High half of the time, latched by reading the low one.
    latched_high: u32,
    alarm_high: u32,
    /// Due time of the alarm in nanoseconds since 1970.
    alarm: Option<u64>,
    interrupt_enabled: bool,
    interrupt_pending: bool,
}

impl Rtc {
    /// A chip showing `start_ns` at clock zero.
    pub fn new(start_ns: u64) -> Rtc {
        Rtc {
            start_ns,
            latched_high: 0,
            alarm_high: 0,
            alarm: None,
            interrupt_enabled: false,
            interrupt_pending: false,
        }
    }

    /// When the alarm is due, in nanoseconds of the machine's clock.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.alarm.map(|alarm| alarm.saturating_sub(self.start_ns))
    }

    /// Fires the alarm when it is due.
    pub fn advance(&mut self, clock_ns: u64) {
        if self.deadline_ns().is_some_and(|due| due <= clock_ns) {
            self.alarm = None;
            self.interrupt_pending = true;
        }
    }

    /// Whether the interrupt line is up.
    pub fn interrupt(&self) -> bool {
        self.interrupt_enabled && self.interrupt_pending
    }

    /// Reads a 32-bit register.
    pub fn read(&mut self, offset: u64, clock_ns: u64) -> u32 {
        match offset {
            0x00 => {
                let now = self.start_ns.wrapping_add(clock_ns);
                self.latched_high = (now >> 32) as u32;
                now as u32
            }
            0x04 => self.latched_high,
            0x08 => self.alarm.unwrap_or(0) as u32,
            0x0c => (self.alarm.unwrap_or(0) >> 32) as u32,
            0x10 => self.interrupt_enabled.into(),
            0x18 => self.alarm.is_some().into(),
            _ => 0,
        }
    }

    /// Writes a 32-bit register.
    pub fn write(&mut self, offset: u64, value: u32, clock_ns: u64) {
        match offset {
            0x00 | 0x04 => {
                let now = self.start_ns.wrapping_add(clock_ns);
                let new = match offset {
                    0 => now & !0xffff_ffff | u64::from(value),
                    _ => now & 0xffff_ffff | u64::from(value) << 32,
                };
                self.start_ns = new.wrapping_sub(clock_ns);
            }
            0x08 => {
                self.alarm = Some(u64::from(self.alarm_high) << 32 | u64::from(value));
                self.advance(clock_ns);
            }
            0x0c => self.alarm_high = value,
            0x10 => self.interrupt_enabled = value & 1 != 0,
            0x14 => self.alarm = None,
            0x1c => self.interrupt_pending = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_fires_at_its_instant() {
        let mut rtc = Rtc::new(5 << 32);
        assert_eq!((rtc.read(0, 7), rtc.read(4, 9)), (7, 5));
        rtc.write(0x10, 1, 0);
        rtc.write(0x0c, 5, 0);
        rtc.write(0x08, 100, 0);
        assert_eq!((rtc.deadline_ns(), rtc.read(0x18, 0)), (Some(100), 1));
        rtc.advance(99);
        assert!(!rtc.interrupt());
        rtc.advance(100);
        assert!(rtc.interrupt());
        rtc.write(0x1c, 1, 101);
        assert!(!rtc.interrupt());
    }
}
