//! Trace events: what the layers do, one line per event, under the field's names and in its form.
//!
//! A [`Trace`] belongs to the nodes at the bottom of a graph, which are opened with it; whoever stands above finds it
//! through [`Node::trace`](crate::node::Node::trace), and each edge remembers whether there is one. Without one an
//! event costs a branch on a flag that is loaded anyway. With one, its line is put together under a short lock into
//! a buffer of bounded size, which is written when it is full and when [`Trace::flush`] is called.
//!
//! Where the reference prints an address, the line has a number that is the same for the same node, root or request
//! as long as it lives: the address of a node or root, the number of a request.

use std::sync::Arc;

use parking_lot::Mutex;

mod events;

use events::Form;
pub use events::TraceEvent;

/// Bytes of lines that are collected before they are written.
const BUFFER_BYTES: usize = 64 << 10;
/// A line is not longer than this, unless it has a name in it.
const LINE_BYTES: usize = 512;

/// Events that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceSet(u64);

impl TraceSet {
    /// Switches an event on.
    pub fn insert(&mut self, event: TraceEvent) {
        self.0 |= event.bit();
    }

    /// Switches an event off.
    pub fn remove(&mut self, event: TraceEvent) {
        self.0 &= !event.bit();
    }

    /// Whether an event is on.
    pub fn contains(self, event: TraceEvent) -> bool {
        self.0 & event.bit() != 0
    }

    /// Whether no event is on.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Something that a line tells.
#[derive(Clone, Copy, Debug)]
pub enum Word<'a> {
    /// An unsigned number: a count, an offset, a set of flags, or who it is about.
    Number(u64),
    /// A number that may be below zero: a result.
    Result(i64),
    /// A name.
    Name(&'a str),
}

impl From<u64> for Word<'_> {
    fn from(n: u64) -> Self {
        Self::Number(n)
    }
}

/// Where lines go: called with whole lines, never from two threads at once.
pub type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// Events on their way to a log. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Trace(Arc<Shared>);

struct Shared {
    on: TraceSet,
    lines: Mutex<Lines>,
}

struct Lines {
    buffer: Vec<u8>,
    sink: Sink,
}

impl Lines {
    fn write(&mut self) {
        if !self.buffer.is_empty() {
            (self.sink)(&self.buffer);
            self.buffer.clear();
        }
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trace({:?})", self.0.on)
    }
}

impl Trace {
    /// A log of the events that are on.
    pub fn new(on: TraceSet, sink: Sink) -> Self {
        let lines = Lines { buffer: Vec::with_capacity(BUFFER_BYTES + LINE_BYTES), sink };
        Self(Arc::new(Shared { on, lines: Mutex::new(lines) }))
    }

    /// Whether this event is on.
    #[inline]
    pub fn is_on(&self, event: TraceEvent) -> bool {
        self.0.on.contains(event)
    }

    /// Tells of an event, if it is on. `words` are as many as the event's form has places.
    #[inline]
    pub fn tell(&self, event: TraceEvent, words: &[Word<'_>]) {
        if self.is_on(event) {
            self.write_line(event, words);
        }
    }

    fn write_line(&self, event: TraceEvent, words: &[Word<'_>]) {
        debug_assert_eq!(event.form().len(), words.len(), "{}", event.name());
        let mut lines = self.0.lines.lock();
        let buffer = &mut lines.buffer;
        buffer.extend_from_slice(event.name().as_bytes());
        for ((text, form), word) in event.form().iter().zip(words) {
            buffer.extend_from_slice(text.as_bytes());
            put(buffer, *form, *word);
        }
        buffer.push(b'\n');
        if lines.buffer.len() >= BUFFER_BYTES {
            lines.write();
        }
    }

    /// Writes what was collected.
    pub fn flush(&self) {
        self.0.lines.lock().write();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.lines.get_mut().write();
    }
}

fn put(buffer: &mut Vec<u8>, form: Form, word: Word<'_>) {
    match (form, word) {
        (_, Word::Name(name)) => buffer.extend_from_slice(name.as_bytes()),
        (_, Word::Result(n)) => {
            if n < 0 {
                buffer.push(b'-');
            }
            put_decimal(buffer, n.unsigned_abs());
        }
        (Form::Who, Word::Number(0)) => buffer.extend_from_slice(b"(nil)"),
        (Form::Who | Form::Hex, Word::Number(n)) => put_hex(buffer, n),
        (Form::Decimal | Form::Name, Word::Number(n)) => put_decimal(buffer, n),
    }
}

fn put_decimal(buffer: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[at..]);
}

fn put_hex(buffer: &mut Vec<u8>, n: u64) {
    let mut digits = [0u8; 18];
    let (mut at, mut rest) = (digits.len(), n);
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    digits[at - 2..at].copy_from_slice(b"0x");
    buffer.extend_from_slice(&digits[at - 2..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of all events, and what it wrote.
    fn collecting() -> (Trace, Arc<Mutex<Vec<u8>>>) {
        let mut on = TraceSet::default();
        TraceEvent::ALL.iter().for_each(|event| on.insert(*event));
        let written = Arc::new(Mutex::new(Vec::new()));
        let to = written.clone();
        (Trace::new(on, Box::new(move |bytes| to.lock().extend_from_slice(bytes))), written)
    }

    fn text(written: &Arc<Mutex<Vec<u8>>>) -> String {
        String::from_utf8(written.lock().clone()).expect("text")
    }

    #[test]
    fn lines_have_the_form_of_the_field() {
        let (trace, written) = collecting();
        let words = [0x55aa.into(), 1024.into(), 512.into(), 0x10.into()];
        trace.tell(TraceEvent::BdrvCoPreadvPart, &words);
        trace.tell(TraceEvent::Qcow2WritevDoneReq, &[0.into(), Word::Result(-5)]);
        let words = [1.into(), Word::Name("a b"), 0.into(), Word::Name("raw"), Word::Name("")];
        trace.tell(TraceEvent::BdrvOpenCommon, &words);
        assert_eq!(text(&written), "", "collected");
        trace.flush();
        assert_eq!(
            text(&written),
            "bdrv_co_preadv_part bs 0x55aa offset 1024 bytes 512 flags 0x10\n\
             qcow2_writev_done_req co (nil) ret -5\n\
             bdrv_open_common bs 0x1 filename \"a b\" flags 0x0 format_name \"raw\"\n"
        );
    }

    #[test]
    fn numbers_are_whole_at_both_ends() {
        let mut buffer = Vec::new();
        for n in [0, 9, 10, u64::MAX] {
            put(&mut buffer, Form::Decimal, n.into());
            buffer.push(b' ');
            put(&mut buffer, Form::Hex, n.into());
            buffer.push(b' ');
        }
        put(&mut buffer, Form::Decimal, Word::Result(i64::MIN));
        let expect = "0 0x0 9 0x9 10 0xa 18446744073709551615 0xffffffffffffffff -9223372036854775808";
        assert_eq!(String::from_utf8(buffer).expect("text"), expect);
    }

    #[test]
    fn what_is_off_is_not_told_and_nothing_is_lost_or_grows_without_bound() {
        let (_, written) = collecting();
        let mut on = TraceSet::default();
        on.insert(TraceEvent::Qcow2CacheFlush);
        on.insert(TraceEvent::BdrvCoPreadvPart);
        on.remove(TraceEvent::BdrvCoPreadvPart);
        let to = written.clone();
        let trace = Trace::new(on, Box::new(move |bytes| to.lock().extend_from_slice(bytes)));
        for n in 0..10_000 {
            trace.tell(TraceEvent::Qcow2CacheFlush, &[n.into(), 1.into()]);
            trace.tell(TraceEvent::BdrvCoPreadvPart, &[n.into(), n.into(), n.into(), n.into()]);
        }
        assert!(trace.0.lines.lock().buffer.capacity() <= BUFFER_BYTES + LINE_BYTES);
        drop(trace);
        assert_eq!(text(&written).lines().count(), 10_000);
        assert!(!text(&written).contains("preadv"));
    }
}
