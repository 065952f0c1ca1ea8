//! Faults that strike I/Os of a simulated disk: which one, how, and how often.

use cowbell_block::{DebugEvent, Error};

use crate::disk::IoKind;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The I/O fails and does nothing.
    Eio,
    /// There is no room left; the I/O does nothing.
    Enospc,
    /// Half of the I/O happens, then it fails.
    Short,
    /// A flush fails, and what it should have made durable never will be, as on Linux.
    FlushDrops,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Eio, Self::Enospc, Self::Short, Self::FlushDrops];

    /// The name in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eio => "eio",
            Self::Enospc => "enospc",
            Self::Short => "short",
            Self::FlushDrops => "flush-drops",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// What the submitter is told.
    pub fn error(self) -> Error {
        Error::from_errno(if self == Self::Enospc { 28 } else { 5 })
    }

    /// Whether it makes sense for this kind of I/O.
    pub fn fits(self, kind: IoKind) -> bool {
        match self {
            Self::Eio => true,
            Self::Enospc => matches!(kind, IoKind::Write | IoKind::WriteZeroes | IoKind::Truncate),
            Self::Short => matches!(kind, IoKind::Read | IoKind::Write),
            Self::FlushDrops => kind == IoKind::Flush,
        }
    }
}

/// Which I/O a fault waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The n-th I/O since the faults were armed, from 0.
    Nth(u64),
    /// The first I/O after the n-th announcement of this event, from 0.
    Tagged(DebugEvent, u64),
    /// Any I/O that makes the file grow by more than this many bytes in all.
    Budget(u64),
}

/// A file of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// The image file.
    Image,
    /// The backing file.
    Backing,
    /// The file with the guest's data, where that is not the image.
    Data,
}

impl Member {
    /// All, with their names in scenario files.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Image, "image"), (Self::Backing, "backing"), (Self::Data, "data")];

    /// The name in scenario files.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(member, _)| *member == self).map_or("image", |(_, name)| name)
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose I/Os it is about.
    pub on: Member,
    /// When it strikes.
    pub trigger: Trigger,
    /// What it does.
    pub kind: FaultKind,
    /// Whether every fitting I/O from then on is struck too.
    pub sticky: bool,
}

/// Armed faults and their counters.
#[derive(Default)]
pub(crate) struct Faults {
    rules: Vec<(Fault, bool)>,
    ios: u64,
    tagged: Vec<u64>,
    grown: u64,
    struck: u64,
    events_struck: Vec<u32>,
}

impl Faults {
    pub fn new(rules: Vec<Fault>) -> Self {
        let rules = rules.into_iter().map(|r| (r, false)).collect();
        let events = DebugEvent::ALL.len();
        Self { rules, tagged: vec![0; events], events_struck: vec![0; events], ..Self::default() }
    }

    /// No fault strikes any more; what struck stays counted.
    pub fn disarm(&mut self) {
        self.rules.clear();
    }

    pub fn struck(&self) -> u64 {
        self.struck
    }

    /// For each event, how many faults struck the first I/O after it.
    pub fn events_struck(&self) -> &[u32] {
        &self.events_struck
    }

    /// Counts one I/O, and says whether it is struck. `announced` are the events since the I/O before it, and
    /// `growth` is by how much it would extend the file.
    pub fn strike(&mut self, kind: IoKind, announced: &[DebugEvent], growth: u64) -> Option<FaultKind> {
        if self.rules.is_empty() {
            return None;
        }
        let nth = self.ios;
        self.ios += 1;
        announced.iter().for_each(|event| self.tagged[*event as usize] += 1);
        let grown = self.grown + growth;
        let mut found = None;
        for (rule, spent) in &mut self.rules {
            let due = match rule.trigger {
                Trigger::Nth(n) => nth == n || rule.sticky && nth > n,
                Trigger::Tagged(event, n) => {
                    let times = self.tagged[event as usize];
                    announced.contains(&event) && (times == n + 1 || rule.sticky && times > n)
                }
                Trigger::Budget(bytes) => growth > 0 && grown > bytes,
            };
            if due && rule.kind.fits(kind) && (rule.sticky || !*spent) {
                *spent = true;
                found = Some(rule.kind);
                break;
            }
        }
        match found {
            Some(_) => {
                self.struck += 1;
                announced.iter().for_each(|event| self.events_struck[*event as usize] += 1);
            }
            None => self.grown = grown,
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_and_sticky() {
        let on = Member::Image;
        let fault = |sticky| Fault { on, trigger: Trigger::Nth(1), kind: FaultKind::Eio, sticky };
        let strikes = |sticky| {
            let mut faults = Faults::new(vec![fault(sticky)]);
            (0..4).filter(|_| faults.strike(IoKind::Read, &[], 0).is_some()).count()
        };
        assert_eq!((strikes(false), strikes(true)), (1, 3));
    }

    #[test]
    fn an_event_strikes_the_first_io_after_it() {
        let (alloc, write) = (DebugEvent::ClusterAlloc, DebugEvent::WriteAio);
        let rule = Fault {
            on: Member::Image,
            trigger: Trigger::Tagged(alloc, 1),
            kind: FaultKind::Eio,
            sticky: false,
        };
        let mut faults = Faults::new(vec![rule]);
        let mut io = |events: &[DebugEvent]| faults.strike(IoKind::Write, events, 0).is_some();
        assert_eq!(
            [io(&[alloc, write]), io(&[write]), io(&[alloc, write]), io(&[alloc])],
            [false, false, true, false]
        );
        assert_eq!((faults.events_struck()[alloc as usize], faults.events_struck()[write as usize]), (1, 1));
    }

    #[test]
    fn a_budget_counts_what_was_granted() {
        let rule = Fault {
            on: Member::Image,
            trigger: Trigger::Budget(1024),
            kind: FaultKind::Enospc,
            sticky: true,
        };
        let mut faults = Faults::new(vec![rule]);
        let mut write = |growth| faults.strike(IoKind::Write, &[], growth);
        assert_eq!(write(1024), None);
        assert_eq!(write(512), Some(FaultKind::Enospc));
        assert_eq!(write(0), None, "writing in place needs no room");
    }
}
