//! The one queue through which everything from outside, and every completion, reaches the machine.
//!
//! An event strikes when the clock reaches its time, before the instruction that would be executed then; events of
//! the same time strike in the order they were queued. The queue is state: it is part of the digest.

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

/// Events by time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventQueue {
    events: BTreeMap<(u64, u64), Event>,
    queued: u64,
}

impl EventQueue {
    /// Queues an event for clock time `at`.
    pub fn push(&mut self, at: u64, event: Event) {
        self.events.insert((at, self.queued), event);
        self.queued += 1;
    }

    /// Time of the next event; `u64::MAX` when there is none.
    pub fn next_time(&self) -> u64 {
        self.events.first_key_value().map_or(u64::MAX, |((at, _), _)| *at)
    }

    /// The next event if it is due at `now`; it stays queued until [`pop`](Self::pop).
    pub fn due(&self, now: u64) -> Option<&Event> {
        self.events.first_key_value().filter(|((at, _), _)| *at <= now).map(|(_, event)| event)
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
}
