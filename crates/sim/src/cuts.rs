//! Every cut of a history whose outcome is known beforehand: what the guest sees is the same all the time.

use std::ops::ControlFlow;

use crate::crash::{CrashSet, Depth};
use crate::disk::History;
use crate::judge::{Allowed, Case, Failure};
use crate::lab::Lab;
use crate::rng::{Concern, Rng};
use crate::subject::Subject;
use crate::timeline::Timeline;

/// What is the same for all cuts.
pub(crate) struct Cuts<'a> {
    /// Who looks at what they leave.
    pub subject: &'a dyn Subject,
    /// What it is held against.
    pub case: Case<'a>,
    /// What may be there.
    pub allowed: Allowed,
    /// For what is drawn.
    pub seed: u64,
}

/// Judges what every cut leaves, and shows it to `each` if it was not seen before.
///
/// # Errors
/// What the first oracle that disagrees says.
pub(crate) fn every_cut(
    lab: &mut Lab,
    history: &History,
    cuts: &Cuts<'_>,
    each: &mut dyn FnMut(&CrashSet),
) -> Result<(), Failure> {
    let mut rng = Rng::stream(cuts.seed, Concern::Crash);
    let mut pool = lab.pool.lock();
    let judge = &mut lab.judge;
    let mut timeline = Timeline::new(history);
    judge.begin_run();
    loop {
        let barrier = timeline.next_barrier();
        timeline.advance(barrier.map_or(u64::MAX, |barrier| barrier - 1));
        let mut set = CrashSet::new(&timeline, &pool, cuts.case.config.host.atom);
        judge.begin_cut();
        judge.adopt(&mut set);
        let mut failure = None;
        let _ = set.enumerate(Depth::QUICK, &mut rng, &mut |set| match judge.state(
            cuts.subject,
            &cuts.case,
            &mut pool,
            set,
            &cuts.allowed,
        ) {
            Ok(new) => {
                if new {
                    each(set);
                }
                ControlFlow::Continue(())
            }
            Err(found) => {
                failure = Some(found);
                ControlFlow::Break(())
            }
        });
        if let Some(found) = failure {
            let at = barrier.map_or("at the end".to_owned(), |barrier| format!("before step {barrier}"));
            return Err(Failure::new(found.oracle, format!("cut {at}: {}", found.what)));
        }
        match barrier {
            Some(barrier) => timeline.advance(barrier),
            None => return Ok(()),
        }
    }
}
