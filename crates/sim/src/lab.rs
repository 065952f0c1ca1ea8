//! Runs scenarios and judges every cut that their history allows (O2, O3, O6), with recovery and a second cut for some
//! of them (O5).

use std::ops::ControlFlow;
use std::rc::Rc;

use crate::bounds::{cut_times, leak_bound};
use crate::config::{Config, Format};
use crate::crash::{CrashSet, Depth, Survivors};
use crate::disk::{History, HostConfig};
use crate::engine::Engine;
use crate::figures::{Figures, cpu_time};
use crate::image::Built;
use crate::judge::{Case, Failure, Judge};
use crate::pool::{Pool, SharedPool};
use crate::reference::Reference;
use crate::repair;
use crate::rng::{Concern, Rng};
use crate::scenario::{Cut, Scenario};
use crate::session::{Closed, Run, Start, case};
use crate::subject::Subject;
use crate::timeline::Timeline;
use crate::vhd::Vhd;

/// What is kept from run to run: contents, images, the judge's memory.
pub struct Lab {
    /// What is under test.
    pub subject: Rc<dyn Subject>,
    /// All contents.
    pub pool: SharedPool,
    /// The judge.
    pub judge: Judge,
    built: Vec<(Config, Rc<Built>)>,
    /// Figures.
    pub figures: Figures,
    pub(crate) closed: Closed,
    /// The history of the last session, whatever its end.
    pub last: History,
    /// The reference's program, for a sample of the states; `None` where there is none, and for runs that are compared.
    pub reference: Option<Reference>,
}

/// A failure, and where the power was cut for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What an oracle says.
    pub failure: Failure,
    /// The cut after which it says so.
    pub cut: Option<Cut>,
}

impl From<Failure> for Found {
    fn from(failure: Failure) -> Self {
        Self { failure, cut: None }
    }
}

/// How much is done with the history of a run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How thoroughly each cut is looked at.
    pub depth: Depth,
    /// One in so many judged states is recovered from; 0 for none.
    pub recover_one_in: u64,
    /// Most recoveries from one run.
    pub recoveries_max: usize,
    /// One in so many of the others is recovered from as well, and what follows is cut at a few places only; 0 for none.
    pub glance_one_in: u64,
    /// Whether the power is cut again during what follows a recovery.
    pub second_cut: bool,
    /// Whether what was recovered is also checked and repaired when it has no leaks.
    pub repair: bool,
}

impl Effort {
    /// Everything, with recovery from 2 % of the states.
    pub const FULL: Self = Self {
        depth: Depth::FULL,
        recover_one_in: 40,
        recoveries_max: 12,
        glance_one_in: 25,
        second_cut: true,
        repair: true,
    };
    /// For random workloads.
    pub const QUICK: Self = Self {
        depth: Depth::QUICK,
        recover_one_in: 30,
        recoveries_max: 6,
        glance_one_in: 25,
        second_cut: true,
        repair: false,
    };
    /// No recovery.
    pub const STATES: Self = Self {
        depth: Depth::FULL,
        recover_one_in: 0,
        recoveries_max: 0,
        glance_one_in: 0,
        second_cut: false,
        repair: false,
    };
}

/// A cut that is recovered from.
struct Recovery {
    start: Start,
    cut: Cut,
    again: Again,
}

/// How the power is cut again during what follows a recovery.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Wherever it may be.
    Everywhere,
    /// At a few places, in a few ways.
    Here,
}

/// Most recoveries from one run that are followed by a glance.
const GLANCES_MAX: usize = 40;
/// Places of a glance.
const GLANCED_AT: usize = 2;

/// Where a run is cut.
#[derive(Clone, Copy)]
struct Place<'a> {
    time: u64,
    /// Only this state, instead of many.
    survivors: Option<&'a Survivors>,
    /// Clusters that were lost before the run.
    leaks_before: u64,
}

impl Lab {
    /// A laboratory for one subject.
    pub fn new(subject: Rc<dyn Subject>) -> Self {
        Self {
            subject,
            pool: Pool::shared(),
            judge: Judge::default(),
            built: Vec::new(),
            figures: Figures::default(),
            closed: Closed::default(),
            last: History::default(),
            reference: None,
        }
    }

    /// A laboratory for the driver of a format.
    pub fn of(format: Format) -> Self {
        match format {
            Format::Qcow2 => Self::new(Rc::new(Engine::default())),
            Format::Vhd => Self::new(Rc::new(Vhd)),
        }
    }

    /// The image that worlds of this configuration begin with.
    pub fn built(&mut self, config: &Config) -> Rc<Built> {
        let key = Config { host: HostConfig::default(), ..config.clone() };
        if let Some((_, built)) = self.built.iter().find(|(c, _)| *c == key) {
            return built.clone();
        }
        if self.built.len() >= 64 {
            self.built.clear();
        }
        let built = Rc::new(self.subject.build(&key, &mut self.pool.lock()));
        self.built.push((key, built.clone()));
        built
    }

    /// Forgets contents when there are too many. Only between runs.
    pub fn tidy(&mut self) {
        if self.pool.lock().count() > 200_000 {
            self.built.clear();
            self.closed.clear();
            self.judge.begin_run();
            self.pool.lock().truncate(1);
        }
    }

    /// Runs a scenario and judges everything about it. The `cut` of the scenario, if there is one, says where
    /// to look; otherwise every cut that its history allows is looked at.
    ///
    /// # Errors
    /// What the first oracle that disagrees says.
    pub fn judge(&mut self, scenario: &Scenario, effort: Effort) -> Result<Run, Found> {
        self.tidy();
        let run = self.run(scenario)?;
        match &scenario.cut {
            None => self.explore(scenario, &run, effort, 0)?,
            Some(cut) => {
                let mut cuts = Vec::new();
                self.judge.begin_run();
                let place = Place { time: cut.step, survivors: cut.survivors.as_ref(), leaks_before: 0 };
                self.one_cut(scenario, &run, place, effort, &mut cuts)?;
                self.recover_all(scenario, cuts, effort)?;
            }
        }
        Ok(run)
    }

    /// Looks at every cut that the history of a run allows.
    ///
    /// # Errors
    /// What the first oracle that disagrees says, with the cut.
    pub fn explore(
        &mut self,
        scenario: &Scenario,
        run: &Run,
        effort: Effort,
        leaks_before: u64,
    ) -> Result<(), Found> {
        self.explore_at(scenario, run, effort, leaks_before, &cut_times(run))
    }

    fn explore_at(
        &mut self,
        scenario: &Scenario,
        run: &Run,
        effort: Effort,
        leaks_before: u64,
        times: &[u64],
    ) -> Result<(), Found> {
        let mut cuts = Vec::new();
        let began = cpu_time();
        self.judge.begin_run();
        for time in times.iter().copied() {
            let place = Place { time, survivors: None, leaks_before };
            self.one_cut(scenario, run, place, effort, &mut cuts)?;
        }
        let judged = cpu_time();
        self.figures.judging += judged - began;
        let before = self.figures.judging;
        let recovered = self.recover_all(scenario, cuts, effort);
        let judging = self.figures.judging - before;
        self.figures.recovering += (cpu_time() - judged).saturating_sub(judging);
        recovered
    }

    /// Judges the states of one cut, and picks some to recover from.
    fn one_cut(
        &mut self,
        scenario: &Scenario,
        run: &Run,
        place: Place<'_>,
        effort: Effort,
        cuts: &mut Vec<Recovery>,
    ) -> Result<(), Found> {
        let Place { time, survivors, leaks_before } = place;
        let built = self.built(&scenario.config);
        let leaks_max = leak_bound(scenario, run, time).saturating_add(leaks_before);
        let case = Case { leaks_max, ..case(scenario, &built) };
        let mut timeline = Timeline::new(&run.history);
        timeline.advance(time);
        let allowed = run.guest.allowed_after_cut(time);
        let mut pool = self.pool.lock();
        let mut set = CrashSet::new(&timeline, &pool, scenario.config.host.atom);
        let mut rng = Rng::stream(scenario.seed ^ time, Concern::Crash);
        self.judge.begin_cut();
        self.judge.adopt(&mut set);
        let (judge, subject, reference) = (&mut self.judge, &*self.subject, &mut self.reference);
        let place_of_data = scenario.config.data;
        let mut found = None;
        let mut visit = |set: &mut CrashSet| {
            let cut = |set: &CrashSet| Cut { step: time, survivors: Some(set.survivors()) };
            match judge.state(subject, &case, &mut pool, set, &allowed) {
                Err(failure) => {
                    found = Some(Found { failure, cut: Some(cut(set)) });
                    return ControlFlow::Break(());
                }
                Ok(new) => {
                    if let Some(reference) = reference
                        && new
                        && survivors.is_none()
                        && let Err(failure) = judge.show(set, |metadata, inspection| {
                            let shown = (set.image(), place_of_data);
                            reference.compare(metadata, shown, &built, &pool, inspection.in_reference)
                        })
                    {
                        found = Some(Found { failure, cut: Some(cut(set)) });
                        return ControlFlow::Break(());
                    }
                    let wanted = match survivors {
                        Some(_) => Some(Again::Everywhere),
                        None => wanted_recovery(effort, set, cuts).filter(|_| new),
                    };
                    if let Some(again) = wanted {
                        cuts.push(Recovery { start: judge.start(set, &case, &pool), cut: cut(set), again });
                    }
                }
            }
            ControlFlow::Continue(())
        };
        let _ = match survivors {
            Some(survivors) => {
                set.make(survivors);
                visit(&mut set)
            }
            None => set.enumerate(effort.depth, &mut rng, &mut visit),
        };
        found.map_or(Ok(()), Err)
    }

    /// Opens what cuts left, reads everything, goes on with the workload, and cuts the power again.
    fn recover_all(&mut self, scenario: &Scenario, cuts: Vec<Recovery>, effort: Effort) -> Result<(), Found> {
        let built = self.built(&scenario.config);
        for Recovery { start, cut, again: place } in cuts {
            let leaks = start.leaks;
            let again = Scenario { faults: Vec::new(), cut: None, ..scenario.clone() };
            self.figures.recoveries += 1;
            let at_cut = |mut found: Found| {
                found.failure.what = format!("after recovery: {}", found.failure.what);
                found.cut = Some(cut.clone());
                found
            };
            let everywhere = place == Again::Everywhere;
            if everywhere && self.subject.can_check() && (effort.repair || start.leaks > 0) {
                self.figures.repairs += 1;
                repair::check_and_repair(self, &again, &built, &start).map_err(|f| at_cut(f.into()))?;
            }
            let run = self.session(&again, &built, start).map_err(at_cut)?;
            if effort.second_cut {
                let depth =
                    if everywhere { Depth { random_masks: 4, ..Depth::QUICK } } else { Depth::GLANCE };
                let mut times = cut_times(&run);
                if !everywhere {
                    let mut rng = Rng::stream(scenario.seed ^ cut.step, Concern::Crash);
                    while times.len() > GLANCED_AT {
                        times.swap_remove(rng.below(times.len() as u64) as usize);
                    }
                }
                let second = Effort { depth, ..Effort::STATES };
                self.explore_at(&again, &run, second, leaks, &times).map_err(at_cut)?;
            }
        }
        Ok(())
    }
}

fn wanted_recovery(effort: Effort, set: &CrashSet, taken: &[Recovery]) -> Option<Again> {
    let key = set.state().key;
    let one_in = |n: u64| n > 0 && key.is_multiple_of(n);
    let taken = |again: Again| taken.iter().filter(|recovery| recovery.again == again).count();
    if one_in(effort.recover_one_in) && taken(Again::Everywhere) < effort.recoveries_max {
        Some(Again::Everywhere)
    } else if one_in(effort.glance_one_in) && taken(Again::Here) < GLANCES_MAX {
        Some(Again::Here)
    } else {
        None
    }
}
