//! Makes a failing scenario small: fewer operations, then fewer faults, then a plainer schedule, then a smaller
//! geometry, as long as an oracle of the same kind keeps disagreeing.

use cowbell_block::Preallocation;

use crate::config::{Config, Crypt, DataPlace, GIVEN_BACK};
use crate::exec::Granularity;
use crate::judge::Failure;
use crate::lab::{Effort, Found, Lab};
use crate::scenario::{Scenario, Schedule};

/// Runs tried before what was reached is taken.
const TRIES_MAX: u32 = 600;

struct Shrinker<'a> {
    lab: &'a mut Lab,
    kind: &'static str,
    effort: Effort,
    tries: u32,
    best: Scenario,
    found: Found,
}

/// What an oracle is about: whether lost data is seen by a reader, in the image or after recovery is chance.
pub fn kind(oracle: &'static str) -> &'static str {
    match oracle {
        "O1" | "O2" | "O6" | "O12" => "data",
        "O3" | "O4" | "O8" | "M3" | "M4" => "metadata",
        other => other,
    }
}

/// The smallest scenario found that fails by the same kind of oracle; it names the cut, if there is one.
pub fn shrink(lab: &mut Lab, scenario: &Scenario, found: &Found, effort: Effort) -> Scenario {
    let kind = kind(found.failure.oracle);
    let open = Scenario { cut: None, ..scenario.clone() };
    // Which states are recovered from is drawn by their hashes, which change with every operation taken away.
    let one_in = effort.recover_one_in.max(effort.glance_one_in).min(1);
    let effort = Effort { recover_one_in: one_in, recoveries_max: 40, ..effort };
    let mut shrinker = Shrinker { lab, kind, effort, tries: 0, best: open, found: found.clone() };
    // The schedule as a list of choices survives changes of the operations better than a seed does.
    shrinker.plain_schedule();
    loop {
        let before = shrinker.best.clone();
        shrinker.fewer_operations();
        shrinker.fewer_faults();
        shrinker.plain_schedule();
        shrinker.smaller();
        if shrinker.best == before || shrinker.tries > TRIES_MAX {
            break;
        }
    }
    shrinker.pin_cut();
    shrinker.best
}

impl Shrinker<'_> {
    /// Whether `candidate` fails the same way; if so it is the best so far.
    fn accept(&mut self, candidate: Scenario) -> bool {
        if self.tries > TRIES_MAX {
            return false;
        }
        self.tries += 1;
        match self.lab.judge(&candidate, self.effort) {
            Err(found) if kind(found.failure.oracle) == self.kind => {
                self.best = candidate;
                self.found = found;
                true
            }
            _ => false,
        }
    }

    fn fewer_operations(&mut self) {
        let mut chunk = (self.best.ops.len() / 2).max(1);
        loop {
            let mut at = 0;
            while at < self.best.ops.len() {
                let mut candidate = self.best.clone();
                let end = (at + chunk).min(candidate.ops.len());
                candidate.ops.drain(at..end);
                if !self.accept(candidate) {
                    at += chunk;
                }
            }
            if chunk == 1 {
                return;
            }
            chunk = (chunk / 2).max(1);
        }
    }

    fn fewer_faults(&mut self) {
        let mut at = 0;
        while at < self.best.faults.len() {
            let mut candidate = self.best.clone();
            candidate.faults.remove(at);
            if !self.accept(candidate) {
                at += 1;
            }
        }
    }

    fn plain_schedule(&mut self) {
        let mut candidate = self.best.clone();
        (candidate.lanes, candidate.schedule, candidate.granularity) =
            (1, Schedule::Fifo, Granularity::IoPoints);
        if self.accept(candidate.clone()) {
            return;
        }
        for (lanes, schedule) in [(2, Schedule::Fifo), (self.best.lanes, Schedule::Fifo)] {
            (candidate.lanes, candidate.schedule) = (lanes, schedule);
            if self.accept(candidate.clone()) {
                return;
            }
        }
        candidate = self.best.clone();
        candidate.lanes = 2;
        let _ = self.accept(candidate);
    }

    fn smaller(&mut self) {
        for index in 0..self.best.ops.len() {
            let Some(range) = self.best.ops[index].range().cloned() else { continue };
            let middle = range.start + (range.end - range.start) / 2;
            for shorter in [range.start..range.start + 1, range.start..middle, middle..range.end] {
                let grain = self.best.config.grain();
                let whole = shorter.start.is_multiple_of(grain) && shorter.end.is_multiple_of(grain);
                if shorter.is_empty() || shorter == range || !whole {
                    continue;
                }
                let mut candidate = self.best.clone();
                candidate.ops[index] = candidate.ops[index].with_range(shorter);
                if self.accept(candidate) {
                    break;
                }
            }
        }
        let default = Config::default();
        let config = self.best.config.clone();
        let mut simpler = Vec::new();
        simpler.push(Config { host: default.host.clone(), ..config.clone() });
        simpler.push(Config { backing: default.backing, ..config.clone() });
        simpler.push(Config { prestate: default.prestate, ..config.clone() });
        simpler.push(Config { lazy: false, ..config.clone() });
        simpler.push(Config { version: 3, refcount_order: 4, ..config.clone() });
        simpler.push(Config {
            l2_cache_bytes: default.l2_cache_bytes,
            l2_slice_bytes: default.l2_slice_bytes,
            refcount_cache_bytes: default.refcount_cache_bytes,
            ..config.clone()
        });
        simpler.push(Config { discard: GIVEN_BACK, preallocation: Preallocation::Off, ..config.clone() });
        simpler.push(Config { data: DataPlace::Inside, ..config.clone() });
        simpler.push(Config { crypt: Crypt::None, ..config.clone() });
        for config in simpler.into_iter().filter(|c| *c != config) {
            let _ = self.accept(Scenario { config, ..self.best.clone() });
        }
    }

    /// Writes the cut into the scenario, if it fails just so.
    fn pin_cut(&mut self) {
        if let Some(cut) = self.found.cut.clone() {
            let mut pinned = Scenario { cut: Some(cut), ..self.best.clone() };
            let same = |r: Result<_, Found>| r.err().is_some_and(|f| kind(f.failure.oracle) == self.kind);
            if same(self.lab.judge(&pinned, self.effort).map(|_| ())) {
                self.best = pinned;
            } else if let Some(cut) = &mut pinned.cut {
                cut.survivors = None;
                if same(self.lab.judge(&pinned, self.effort).map(|_| ())) {
                    self.best = pinned;
                }
            }
        }
    }
}

/// The text of a scenario file for a failure.
pub fn report(scenario: &Scenario, failure: &Failure) -> String {
    let mut out = format!("# {failure}\n");
    out.push_str(&scenario.to_text());
    if let Some(commands) = scenario.to_qemu_io() {
        out.push_str("#\n# in the words of qemu-io:\n");
        commands.lines().for_each(|line| out.push_str(&format!("#   {line}\n")));
    }
    out
}
