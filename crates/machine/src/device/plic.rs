//! The platform-level interrupt controller: 95 sources, two contexts per hart (machine, supervisor).

/// Number of sources, source 0 (which does not exist) included.
const SOURCES: usize = 96;
const WORDS: usize = SOURCES / 32;

/// State of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plic {
    priority: [u32; SOURCES],
    /// What the devices hold up now.
    level: [u32; WORDS],
    pending: [u32; WORDS],
    /// Claimed and not completed: the gateway lets nothing new through.
    claimed: [u32; WORDS],
    contexts: Vec<Context>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Context {
    enable: [u32; WORDS],
    threshold: u32,
}

impl Plic {
    /// For so many harts.
    pub fn new(harts: usize) -> Plic {
        Plic {
            priority: [0; SOURCES],
            level: [0; WORDS],
            pending: [0; WORDS],
            claimed: [0; WORDS],
            contexts: vec![Context::default(); harts * 2],
        }
    }

    /// A device raises or lowers its line.
    pub fn set_level(&mut self, source: usize, high: bool) {
        let (word, bit) = (source / 32, 1 << (source % 32));
        if high {
            self.level[word] |= bit;
            self.pending[word] |= bit & !self.claimed[word];
        } else {
            self.level[word] &= !bit;
            self.pending[word] &= !bit;
        }
    }

    /// Whether a context's interrupt is up. Context `2 * hart` is machine mode, the next one the supervisor.
    pub fn output(&self, context: usize) -> bool {
        self.best(context).is_some()
    }

    /// The enabled pending source of highest priority above the threshold, the lowest number first.
    fn best(&self, context: usize) -> Option<usize> {
        let Context { enable, threshold } = &self.contexts[context];
        let mut best = None;
        let mut best_priority = *threshold;
        for (word, (pending, enable)) in self.pending.iter().zip(enable).enumerate() {
            let mut bits = pending & enable;
            while bits != 0 {
                let source = word * 32 + bits.trailing_zeros() as usize;
                if self.priority[source] > best_priority {
                    (best, best_priority) = (Some(source), self.priority[source]);
                }
                bits &= bits - 1;
            }
        }
        best
    }

    /// Reads a 32-bit register; reading a claim register claims.
    pub fn read(&mut self, offset: u64) -> Option<u32> {
        Some(match offset {
            0..0x1000 => self.priority.get((offset / 4) as usize).copied().unwrap_or(0),
            0x1000..0x2000 => self.pending.get(((offset - 0x1000) / 4) as usize).copied().unwrap_or(0),
            0x2000..0x20_0000 => {
                let (context, word) = enable_position(offset);
                self.contexts.get(context)?.enable.get(word).copied().unwrap_or(0)
            }
            _ => {
                let context = ((offset - 0x20_0000) / 0x1000) as usize;
                let threshold = self.contexts.get(context)?.threshold;
                match offset & 0xfff {
                    0 => threshold,
                    4 => self.claim(context),
                    _ => 0,
                }
            }
        })
    }

    fn claim(&mut self, context: usize) -> u32 {
        let Some(source) = self.best(context) else { return 0 };
        let (word, bit) = (source / 32, 1 << (source % 32));
        self.pending[word] &= !bit;
        self.claimed[word] |= bit;
        source as u32
    }

    /// Writes a 32-bit register; writing a claim register completes.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<()> {
        match offset {
            0..0x1000 => {
                if let Some(priority) = self.priority.get_mut((offset / 4) as usize).filter(|_| offset >= 4) {
                    *priority = value & 7;
                }
            }
            0x1000..0x2000 => {}
            0x2000..0x20_0000 => {
                let (context, word) = enable_position(offset);
                let mask = if word == 0 { !1 } else { !0 };
                if let Some(enable) = self.contexts.get_mut(context)?.enable.get_mut(word) {
                    *enable = value & mask;
                }
            }
            _ => {
                let context = self.contexts.get_mut(((offset - 0x20_0000) / 0x1000) as usize)?;
                match offset & 0xfff {
                    0 => context.threshold = value & 7,
                    4 => self.complete(value as usize),
                    _ => {}
                }
            }
        }
        Some(())
    }

    fn complete(&mut self, source: usize) {
        if source >= SOURCES {
            return;
        }
        let (word, bit) = (source / 32, 1 << (source % 32));
        if self.claimed[word] & bit != 0 {
            self.claimed[word] &= !bit;
            self.pending[word] |= self.level[word] & bit;
        }
    }
}

fn enable_position(offset: u64) -> (usize, usize) {
    let at = offset - 0x2000;
    ((at / 0x80) as usize, (at % 0x80 / 4) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: u64 = 0x20_1004;

    fn plic() -> Plic {
        let mut plic = Plic::new(1);
        for (source, priority) in [(1, 1), (10, 3), (40, 3)] {
            plic.write(source * 4, priority).expect("there");
        }
        plic.write(0x2080, u32::MAX).expect("there");
        plic.write(0x2084, u32::MAX).expect("there");
        plic
    }

    #[track_caller]
    fn check(raised: &[usize], threshold: u32, expect: &[u32]) {
        let mut plic = plic();
        plic.write(0x20_1000, threshold).expect("there");
        for &source in raised {
            plic.set_level(source, true);
        }
        assert_eq!(plic.output(1), expect[0] != 0);
        let claims: Vec<u32> = expect.iter().map(|_| plic.read(CLAIM).expect("there")).collect();
        assert_eq!(claims, expect);
    }

    #[test]
    fn claims_by_priority_then_number() {
        check(&[], 0, &[0]);
        check(&[1, 40, 10], 0, &[10, 40, 1, 0]);
        check(&[1, 40, 10], 1, &[10, 40, 0]);
        check(&[2], 0, &[0]);
    }

    #[test]
    fn a_line_still_up_at_completion_is_pending_again() {
        let mut plic = plic();
        plic.set_level(10, true);
        assert_eq!(plic.read(CLAIM), Some(10));
        plic.set_level(10, true);
        assert!(!plic.output(1));
        plic.write(CLAIM, 10).expect("there");
        assert!(plic.output(1));
        assert_eq!(plic.read(CLAIM), Some(10));
        plic.set_level(10, false);
        plic.write(CLAIM, 10).expect("there");
        assert!(!plic.output(1));
    }
}
