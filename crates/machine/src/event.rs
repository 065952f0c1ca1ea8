//! The one queue through which everything from outside, and every completion, reaches the machine.
//!
//! An event strikes when the clock reaches its time, before the instruction that would be executed then; events of
//! the same time strike in the order they were queued, those from outside first: whether they were known long before
//! or came while the machine stood must make no difference. The queue is state: it is part of the digest.

use crate::port::ConsoleId;
use std::collections::BTreeMap;

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Bytes typed into a console.
    Input {
        /// Which.
        console: ConsoleId,
        /// What.
        bytes: Vec<u8>,
    },
    /// A frame arrives at the network card.
    Frame {
        /// From the destination address on.
        bytes: Vec<u8>,
    },
    /// A disk request is due.
    DiskDue {
        /// Slot of the virtio device.
        slot: usize,
        /// The request.
        token: u64,
    },
}

impl Event {
    const fn origin(&self) -> Origin {
        match self {
            Event::Input { .. } | Event::Frame { .. } => Origin::Outside,
            Event::DiskDue { .. } => Origin::Inside,
        }
    }
}

/// Where an event comes from; the order at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Origin {
    Outside,
    Inside,
}

/// Events by time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventQueue {
    events: BTreeMap<(u64, Origin, u64), Event>,
    /// Events queued so far from each origin: numbered apart, so that input known in advance moves no other number.
    queued: [u64; 2],
}

impl EventQueue {
    /// Queues an event for clock time `at`.
    pub fn push(&mut self, at: u64, event: Event) {
        let origin = event.origin();
        let queued = &mut self.queued[origin as usize];
        self.events.insert((at, origin, *queued), event);
        *queued += 1;
    }

    /// Time of the next event; `u64::MAX` when there is none.
    pub fn next_time(&self) -> u64 {
        self.events.first_key_value().map_or(u64::MAX, |((at, ..), _)| *at)
    }

    /// The next event if it is due at `now`; it stays queued until [`pop`](Self::pop).
    pub fn due(&self, now: u64) -> Option<&Event> {
        self.events.first_key_value().filter(|((at, ..), _)| *at <= now).map(|(_, event)| event)
    }

    /// Removes the next event.
    pub fn pop(&mut self) -> Option<Event> {
        self.events.pop_first().map(|(_, event)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_in_order() {
        let input = |byte| Event::Input { console: ConsoleId::Uart, bytes: vec![byte] };
        let mut queue = EventQueue::default();
        for (at, byte) in [(9, 1), (5, 2), (9, 3), (7, 4)] {
            queue.push(at, input(byte));
        }
        assert_eq!(queue.due(4), None);
        assert_eq!(queue.next_time(), 5);
        let order: Vec<Event> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [2, 4, 1, 3].map(input));
        assert_eq!(queue.next_time(), u64::MAX);
    }

    #[test]
    fn what_comes_from_outside_strikes_first() {
        let input = Event::Input { console: ConsoleId::Uart, bytes: vec![1] };
        let due = Event::DiskDue { slot: 0, token: 7 };
        let mut queue = EventQueue::default();
        queue.push(5, due.clone());
        queue.push(5, input.clone());
        assert_eq!([queue.pop(), queue.pop()], [Some(input), Some(due)]);
    }
}
