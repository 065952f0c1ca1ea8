//! What the engine tells of itself, in the field's names and numbers.
//!
//! Slices of tables stand for the reference's cached tables: an index is the slice's place in its table. Looks into
//! the caches that find what they seek are not told.

use std::sync::Arc;

use cowbell_block::trace::Word;
use cowbell_block::{Cause, Completion, Op, Request, TraceEvent};

use crate::engine::Engine;
use crate::{write, zero};

/// The field's numbers of cluster types.
pub(crate) mod cluster_type {
    /// Storage to be written, of whatever type.
    pub const WRITTEN: u64 = 0;
    /// No storage.
    pub const UNALLOCATED: u64 = 0;
    /// Storage.
    pub const NORMAL: u64 = 4;
    /// Compressed storage.
    pub const COMPRESSED: u64 = 5;
}

/// Starts a write, and tells of its beginning and end.
pub(crate) fn write(engine: &Arc<Engine>, request: Request) -> Op {
    if !engine.file.is_traced() {
        return write::submit(engine, request);
    }
    let cause = request.cause.request;
    engine.trace(TraceEvent::Qcow2WritevStartReq, [cause, request.offset, request.len]);
    match write::submit(engine, request) {
        Op::Done(completion) => {
            tell_done(engine, cause, &completion);
            Op::Done(completion)
        }
        Op::Wait(future) => {
            let engine = engine.clone();
            Op::wait(async move {
                let completion = future.await;
                tell_done(&engine, cause, &completion);
                completion
            })
        }
    }
}

fn tell_done(engine: &Engine, cause: u64, completion: &Completion) {
    let result = completion.result.as_ref().map_or_else(|e| -i64::from(e.errno()), |_| 0);
    engine.file.tell(TraceEvent::Qcow2WritevDoneReq, &[cause.into(), Word::Result(result)]);
}

/// Starts a write of zeroes, and tells of it.
pub(crate) fn write_zeroes(engine: &Arc<Engine>, request: Request) -> Op {
    let words = [request.cause.request, request.offset, request.len];
    engine.trace(TraceEvent::Qcow2PwriteZeroesStartReq, words);
    engine.trace(TraceEvent::Qcow2PwriteZeroes, words);
    zero::submit_zeroes(engine, request)
}

/// A piece of a request on its way to or from one place.
pub(crate) struct Task {
    /// `read` or `write`.
    pub what: &'static str,
    /// The type of its clusters, as in [`cluster_type`].
    pub cluster_type: u64,
    /// Where it lies in the file, or 0.
    pub host: u64,
    /// Where it lies on the disk.
    pub guest: u64,
    /// Its bytes.
    pub len: u64,
}

impl Engine {
    /// Tells of an event, if anybody wants to know.
    #[inline]
    pub fn trace<const N: usize>(&self, event: TraceEvent, words: [u64; N]) {
        if self.file.is_traced() {
            self.file.tell(event, &words.map(Word::Number));
        }
    }

    /// Tells of a piece of a request.
    #[inline]
    pub fn tell_task(&self, task: Task, cause: Cause) {
        if self.file.is_traced() {
            self.tell_piece(&task, cause);
        }
    }

    fn tell_piece(&self, task: &Task, cause: Cause) {
        let engine = std::ptr::from_ref(self).addr() as u64;
        let numbers = [task.cluster_type, task.host, task.guest, task.len].map(Word::Number);
        let [cluster_type, host, guest, len] = numbers;
        let words = [
            cause.request.into(),
            engine.into(),
            0.into(),
            Word::Name(task.what),
            cluster_type,
            host,
            guest,
            len,
            0.into(),
            0.into(),
        ];
        self.file.tell(TraceEvent::Qcow2AddTask, &words);
    }

    /// Tells that a slice of a table is read into its cache.
    pub fn tell_of_load(&self, is_l2: u64, host: u64, index: u64, cause: Cause) {
        if self.file.is_traced() {
            self.trace(TraceEvent::Qcow2CacheGet, [cause.request, is_l2, host, 1]);
            self.trace(TraceEvent::Qcow2CacheGetRead, [cause.request, is_l2, index]);
        }
    }
}
