//! Clusters that are free in the file but must not be reused yet.
//!
//! An operation that replaces all tables at once frees clusters which running plans may still read. They rest until
//! the plans of their epoch have ended; only then are they handed out, or their storage given back to the host.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{ErrorKind, Request, Result, mutant};
use roaring::RoaringTreemap;

use crate::engine::{Engine, NO_CAUSE};
use crate::state::{Freed, State};

/// What one operation freed.
pub(crate) struct Resting {
    epoch: u64,
    clusters: Arc<RoaringTreemap>,
    /// Give the storage back to the host at the end.
    punch: bool,
}

impl State {
    /// Lets clusters rest that no table refers to any more.
    pub fn rest(&mut self, clusters: RoaringTreemap, punch: bool) {
        let epoch = self.epochs.current();
        self.epochs.advance();
        if !clusters.is_empty() {
            self.resting.push(Resting { epoch, clusters: Arc::new(clusters), punch });
        }
    }

    /// Whether a cluster must not be handed out yet, although its refcount is 0.
    #[inline]
    pub fn is_resting(&self, cluster: u64) -> bool {
        !self.resting.is_empty() && self.resting.iter().any(|r| r.clusters.contains(cluster))
    }
}

impl Engine {
    /// Writes everything back, of an engine that is about to end: also what running plans still know is counted down, since
    /// nobody would come back to it. Should the engine go on after all, that is not handed out before they have ended.
    pub(crate) async fn settle_for_good(self: &Arc<Self>) -> Result<()> {
        self.settle_refcounts().await?;
        let released = {
            let mut state = self.state.lock();
            let released = std::mem::take(&mut state.released);
            let mut clusters = RoaringTreemap::new();
            for freed in &released {
                clusters.insert_range(freed.clusters.clone());
            }
            state.rest(clusters, false);
            released
        };
        if released.is_empty() || mutant::is_active("known-not-counted-down") {
            return Ok(());
        }
        for Freed { mut clusters, .. } in released {
            while !clusters.is_empty() {
                let dropped = self.decide(NO_CAUSE, |state| state.drop_references(clusters.clone())).await;
                match dropped {
                    Ok(count) => clusters.start += count,
                    // Reported, and the image is refused from now on.
                    Err(e) if e.kind() == ErrorKind::Corrupt => clusters.start += 1,
                    // They are lost until a check finds them.
                    Err(e) => return Err(e),
                }
            }
        }
        self.write_refcounts().await?;
        self.barrier().await
    }

    /// Ends the rest of clusters that no plan can know any more.
    pub(crate) async fn end_rests(self: &Arc<Self>) {
        loop {
            let rested = {
                let mut state = self.state.lock();
                let oldest = state.epochs.oldest_running();
                let ready = |r: &Resting| r.epoch < oldest || mutant::is_active("replaced-at-once");
                let Some(at) = state.resting.iter().position(ready) else { return };
                if !state.resting[at].punch {
                    state.hint = state.hint.min(state.resting[at].clusters.min().unwrap_or(u64::MAX));
                    state.resting.swap_remove(at);
                    continue;
                }
                // Nobody may own them before the hole is there.
                state.resting[at].punch = false;
                state.resting[at].epoch = u64::MAX;
                state.resting[at].clusters.clone()
            };
            self.punch_all(&rested).await;
            let mut state = self.state.lock();
            let at = state.resting.iter().position(|r| Arc::ptr_eq(&r.clusters, &rested));
            let at = at.expect("only this takes it away");
            state.resting[at].epoch = 0;
        }
    }

    /// Returns storage to the host, runs at once. Failure costs only space.
    async fn punch_all(self: &Arc<Self>, clusters: &RoaringTreemap) {
        let bits = self.geometry.cluster_bits;
        let mut run: Range<u64> = 0..0;
        for cluster in clusters.iter().chain([u64::MAX]) {
            if cluster == run.end {
                run.end += 1;
                continue;
            }
            if !run.is_empty() {
                let request = Request::discard(run.start << bits, (run.end - run.start) << bits);
                let _ = self.file.submit(request).finish().await;
            }
            run = cluster..cluster.saturating_add(1);
        }
    }
}
