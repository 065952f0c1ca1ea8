//! What is done to an input, and what must hold whatever the input is.
//!
//! | module | targets |
//! |---|---|
//! | `look` | `open`, `read` |
//! | `judge` | `check`, `repair`, and the independent checker's verdict that others ask for |
//! | `change` | `write` |
//! | `tables` | `snapshots`, `bitmaps` |
//! | `text` | `luks`, `blkdebug`, `options`, `names` |
//! | `vhd` | `vpc` |
//! | `inspect` | `inspect` |

mod change;
mod inspect;
mod judge;
mod look;
mod tables;
mod text;
mod vhd;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cowbell_block::{Access, Completion, Op};
use cowbell_qcow2::{OpenOptions, Qcow2};

use crate::choices::Choices;
use crate::file::CountingFile;

/// One way of using an input.
pub struct Target {
    /// Its name on the command line, and in the corpus.
    pub name: &'static str,
    /// Does it. An error is a finding; its text up to ` [` is the same for all of its kind.
    pub run: Run,
}

/// What a target is given.
pub enum Run {
    /// An image file, and decisions.
    Image(fn(&CountingFile, &mut Choices<'_>) -> Result<(), String>),
    /// Bytes to be parsed.
    Bytes(fn(&[u8]) -> Result<(), String>),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "open", run: Run::Image(look::open) },
    Target { name: "read", run: Run::Image(look::read) },
    Target { name: "check", run: Run::Image(judge::check) },
    Target { name: "write", run: Run::Image(change::write) },
    Target { name: "repair", run: Run::Image(judge::repair) },
    Target { name: "snapshots", run: Run::Image(tables::snapshots) },
    Target { name: "bitmaps", run: Run::Image(tables::bitmaps) },
    Target { name: "inspect", run: Run::Image(inspect::inspect) },
    Target { name: "luks", run: Run::Bytes(text::luks) },
    Target { name: "blkdebug", run: Run::Bytes(text::blkdebug) },
    Target { name: "options", run: Run::Bytes(text::options) },
    Target { name: "names", run: Run::Bytes(text::names) },
    Target { name: "vpc", run: Run::Bytes(vhd::vpc) },
];

/// Polls after which a future counts as stuck: memory answers at once.
const POLLS_MAX: u32 = 1_000_000;
/// The value of a future that has to wait for nobody else; `None` when it is stuck.
pub fn block_until<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..POLLS_MAX).find_map(|_| match future.as_mut().poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    })
}

/// The completion of a request.
pub fn drive(op: Op) -> Completion {
    match op {
        Op::Done(completion) => completion,
        Op::Wait(future) => block_until(future).expect("the request is stuck"),
    }
}

fn wait<T>(what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    block_until(future).ok_or_else(|| format!("{what} is stuck"))
}

/// The image, or nothing when it is refused, which is always allowed.
fn opened(file: &CountingFile, access: Access, options: OpenOptions) -> Result<Option<Arc<Qcow2>>, String> {
    let options = OpenOptions { access, ..options };
    Ok(wait("open", Qcow2::open(file.node(), None, options))?.ok())
}

fn must_be_untouched(file: &CountingFile) -> Result<(), String> {
    if file.is_mutated() { Err("a read-only image is written to".into()) } else { Ok(()) }
}
