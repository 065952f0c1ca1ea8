//! The core-local interruptor: software interrupts and the machine timer, laid out as SiFive's CLINT.

/// State of the interruptor. `mtime` is the clock and cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Aclint {
    /// One bit per hart.
    pub msip: Vec<bool>,
    /// In ticks of `time`.
    pub mtimecmp: Vec<u64>,
}

const MTIMECMP: u64 = 0x4000;
const MTIME: u64 = 0xbff8;

impl Aclint {
    /// For so many harts, nothing pending.
    pub fn new(harts: usize) -> Aclint {
        Aclint { msip: vec![false; harts], mtimecmp: vec![u64::MAX; harts] }
    }

    /// Reads 4 or 8 bytes; `ticks` is the time now.
    pub fn read(&self, offset: u64, size: usize, ticks: u64) -> Option<u64> {
        let value = match offset & !7 {
            MTIME => ticks,
            at if at >= MTIMECMP => *self.mtimecmp.get(((at - MTIMECMP) / 8) as usize)?,
            _ => return self.msip.get((offset / 4) as usize).map(|set| u64::from(*set)),
        };
        Some(if size == 8 { value } else { value >> (8 * (offset & 4)) & 0xffff_ffff })
    }

    /// Writes 4 or 8 bytes.
    pub fn write(&mut self, offset: u64, size: usize, value: u64) -> Option<()> {
        match offset & !7 {
            MTIME => {}
            at if at >= MTIMECMP => {
                let compare = self.mtimecmp.get_mut(((at - MTIMECMP) / 8) as usize)?;
                let shift = 8 * (offset & 4);
                *compare = match size {
                    8 => value,
                    _ => *compare & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift,
                };
            }
            _ => *self.msip.get_mut((offset / 4) as usize)? = value & 1 != 0,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_the_comparator_can_be_written_apart() {
        let mut aclint = Aclint::new(2);
        aclint.write(0x4008, 4, 0x1234).expect("there");
        aclint.write(0x400c, 4, 0x5678).expect("there");
        assert_eq!(aclint.mtimecmp, [u64::MAX, 0x5678_0000_1234]);
        assert_eq!(aclint.read(0x400c, 4, 0), Some(0x5678));
        assert_eq!(aclint.read(0xbff8, 8, 77), Some(77));
        aclint.write(4, 4, 1).expect("there");
        assert_eq!(aclint.msip, [false, true]);
        assert_eq!(aclint.write(8, 4, 1), None);
    }
}
