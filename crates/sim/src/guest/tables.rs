//! Changes of what stands beside the disk: bitmaps, snapshots, the form of the image.

use cowbell_block::node::Node;
use cowbell_block::{
    Amend, ErrorKind, Force, NewSnapshot, OptionTree, Secrets, SnapshotChange, SnapshotName,
};

use super::Guest;
use super::state::STATE_SECTORS;
use crate::bitmaps::BitmapOp;
use crate::judge::Failure;
use crate::model::Ticket;
use crate::pool::{SECTOR, ZERO};
use crate::scenario::{Amendment, KeyOp, SnapshotOp};

impl Guest {
    /// One change of the bitmaps at a time.
    pub(super) async fn change_bitmaps(&self, node: &dyn Node, op: BitmapOp, number: u32) {
        if self.changing_bitmaps.replace(true) {
            return;
        }
        let name = format!("{number} after {}", self.generation);
        let begun = self.bitmaps.borrow_mut().begin(op, name, self.instant(), &self.model.borrow());
        if let Some((change, changing)) = begun {
            let len = node.len();
            let result = self.subject.change_bitmaps(node, change).await;
            let now = self.instant();
            let mut bitmaps = self.bitmaps.borrow_mut();
            match result {
                Ok(()) => bitmaps.end(changing, now),
                Err(error) => {
                    bitmaps.fail(&changing);
                    drop(bitmaps);
                    // One that a cut left inconsistent can only be removed; version 2 has none.
                    let refused = matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unsupported);
                    // A bitmap that was read before the disk got another length cannot be merged any more.
                    let outdated = error.kind() == ErrorKind::InvalidInput && node.len() != len;
                    if !refused && !outdated {
                        self.excuse("a change of bitmaps", &error);
                    }
                }
            }
        }
        self.changing_bitmaps.set(false);
    }

    /// One change of the key slots at a time; what cannot be done now is left out.
    pub(super) async fn change_keys(&self, node: &dyn Node, op: KeyOp) {
        if self.changing_keys.replace(true) {
            return;
        }
        let begun = self.keys.borrow_mut().begin(op, self.instant());
        if begun {
            match self.subject.change_keys(node, op).await {
                Ok(()) => {
                    let now = self.instant();
                    self.keys.borrow_mut().end(op, now);
                    self.durable_times.borrow_mut().push(now);
                }
                Err(error) => self.excuse("a change of key slots", &error),
            }
        }
        self.changing_keys.set(false);
    }

    /// One change of the snapshots at a time; what cannot be done now is left out.
    pub(super) async fn snapshot(&self, node: &dyn Node, change: SnapshotOp) {
        if self.changing_all.replace(true) {
            return;
        }
        if let Some((change, ticket, start)) = self.begin_snapshot(node, change).await {
            let creates = matches!(change, SnapshotChange::Create(_));
            let result = node.change_snapshots(change).await;
            let now = self.instant();
            let (mut model, mut state) = (self.model.borrow_mut(), self.state.borrow_mut());
            if creates {
                model.keep(start, now);
                state.keep(start, now);
            }
            let (of_disk, of_state) = ticket;
            match result {
                Ok(()) => {
                    model.end(now, of_disk, false);
                    of_state.into_iter().for_each(|ticket| state.end(now, ticket, false));
                }
                Err(error) => {
                    model.fail(now, of_disk);
                    of_state.into_iter().for_each(|ticket| state.fail(now, ticket));
                    drop((model, state));
                    self.lost_track.set(true);
                    // Narrow refcounts cannot count another owner.
                    let narrow = self.config.refcount_order <= 2 || self.amended.get();
                    if narrow && error.kind() == ErrorKind::InvalidInput {
                        return self.changing_all.set(false);
                    }
                    self.excuse("a change of snapshots", &error);
                }
            }
        }
        self.changing_all.set(false);
    }

    pub(super) async fn begin_snapshot(
        &self,
        node: &dyn Node,
        op: SnapshotOp,
    ) -> Option<(SnapshotChange, (Ticket, Vec<Ticket>), u64)> {
        let listed = node.info().await.ok()?.snapshots;
        let mut model = self.model.borrow_mut();
        let mut state = self.state.borrow_mut();
        let now = self.instant();
        let there = model.snapshots().len();
        if self.lost_track.get() || listed.len() != there {
            if !self.lost_track.get() {
                drop(model);
                let what = format!("{} snapshots are listed, there should be {there}", listed.len());
                self.fail(Failure::new("O1", what));
            }
            return None;
        }
        let pick =
            |which: u32| listed.get(which as usize % there.max(1)).map(|s| SnapshotName::Id(s.id.clone()));
        Some(match op {
            SnapshotOp::Create | SnapshotOp::Suspend => {
                let mut new = NewSnapshot { name: format!("at {now}"), ..NewSnapshot::default() };
                let mut of_state = vec![state.begin_snapshot(now)];
                if op == SnapshotOp::Suspend && self.config.vm_state {
                    // The snapshot takes the VM state with it.
                    new.vm_state_size = (STATE_SECTORS * SECTOR) as u64;
                    let zeroes = std::iter::repeat_n(ZERO, STATE_SECTORS);
                    of_state.push(state.begin_write(now, 0, zeroes));
                }
                (SnapshotChange::Create(new), (model.begin_snapshot(now), of_state), now)
            }
            SnapshotOp::Delete(which) => {
                let name = pick(which)?;
                let index = which as usize % there;
                let tickets = (model.begin_delete(now, index), vec![state.begin_delete(now, index)]);
                (SnapshotChange::Delete(name), tickets, now)
            }
            SnapshotOp::Apply(which) => {
                let (name, index) = (pick(which)?, which as usize % there.max(1));
                let kept = model.kept(model.snapshots()[index]);
                let is_exact = kept.is_exact() && state.kept(state.snapshots()[index]).is_exact();
                if !is_exact || self.config.bitmaps {
                    return None;
                }
                let to = kept.sectors() as u64;
                self.resizes.borrow_mut().push((now, to));
                if to != model.shortest(now) {
                    self.state_until.set(self.state_until.get().min(now));
                }
                let tickets = (model.begin_apply(now, index), vec![state.begin_apply(now, index)]);
                (SnapshotChange::Apply(name), tickets, now)
            }
        })
    }

    /// Changes what the image is; then it must be opened again.
    pub(super) async fn amend(&self, change: Amendment) {
        let Some(node) = self.node.borrow().clone() else { return };
        let mut options = OptionTree::new();
        match change {
            Amendment::Version(2) => options.insert("compat".to_owned(), "0.10".into()),
            Amendment::Version(_) => options.insert("compat".to_owned(), "1.1".into()),
            Amendment::RefcountOrder(order) => {
                options.insert("refcount_bits".to_owned(), (1u64 << order).into())
            }
        };
        if self.amending.replace(true) {
            return;
        }
        let result = node.amend(options, Amend { force: Force::No, secrets: Secrets::default() }).await;
        drop(node);
        // Whoever began before is still at work, or is being told.
        self.alone().await;
        match result {
            Ok(()) => {
                self.amended.set(true);
                // Version 2 drops them.
                if matches!(change, Amendment::Version(_)) {
                    self.bitmaps.borrow_mut().lose_all();
                }
            }
            // What does not go together is told before anything is changed.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
            Err(error) => self.excuse("an amendment", &error),
        }
        self.amending.set(false);
        self.reopen().await;
        self.queue.borrow_mut().barrier = false;
    }
}
