//! The verdict on one image that a power cut may have left: metadata (O3) and data (O2), and snapshots (O6).
//!
//! Checking the metadata is the expensive part, and most crash states differ in data only. So the inspection is
//! remembered by a hash of the sectors it looked at. A remembered result holds for another image if all these
//! sectors are equal; when an inspection looks at a sector outside the set, the memory is emptied and the set
//! grows. This is exact, whatever the engine tags as metadata.

use crate::config::Config;
use crate::crash::CrashSet;
use crate::model::{Mismatch, Model};
use crate::pool::{Content, HashIndex, Pool};
use crate::stamp::describe;
use crate::subject::{ImageBytes, Inspection, SectorSet, Subject};
use crate::timeline::Image;

/// An oracle found something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which oracle: `O1` and so on, as in the design.
    pub oracle: &'static str,
    /// What it found, in words.
    pub what: String,
}

impl Failure {
    /// A finding of `oracle`.
    pub fn new(oracle: &'static str, what: impl Into<String>) -> Self {
        Self { oracle, what: what.into() }
    }

    /// A sector that holds what it must not.
    pub fn wrong_sector(oracle: &'static str, mismatch: &Mismatch, pool: &Pool) -> Self {
        let allowed: Vec<_> = mismatch.allowed.iter().map(|c| describe(pool, *c)).collect();
        let found = describe(pool, mismatch.found);
        Self::new(
            oracle,
            format!("sector {} holds {found}; allowed: {}", mismatch.sector, allowed.join(", or ")),
        )
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.oracle, self.what)
    }
}

/// What each guest sector may hold.
#[derive(Default)]
pub struct Allowed {
    starts: Vec<u32>,
    values: Vec<Content>,
}

impl Allowed {
    /// After a power cut at `time`.
    pub fn after_cut(model: &Model, time: u64) -> Self {
        let mut allowed = Self::default();
        for sector in 0..model.sectors() {
            allowed.starts.push(allowed.values.len() as u32);
            model.allowed_after_cut(time, sector, &mut allowed.values);
        }
        allowed.starts.push(allowed.values.len() as u32);
        allowed
    }

    /// The values of one sector.
    pub fn of(&self, sector: usize) -> &[Content] {
        &self.values[self.starts[sector] as usize..self.starts[sector + 1] as usize]
    }
}

/// What stays the same while the states of one run are judged.
pub struct Case<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The backing file's content.
    pub backing: Option<&'a [Content]>,
    /// What the guest of each snapshot must read.
    pub snapshots: &'a [Vec<Content>],
    /// Most clusters that may be lost (O8).
    pub leaks_max: u64,
}

/// Counters for the table of figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// States generated.
    pub states: u64,
    /// States that were not seen before and were judged.
    pub judged: u64,
    /// Inspections of metadata that were really made.
    pub inspected: u64,
}

/// Judges images.
#[derive(Default)]
pub struct Judge {
    metadata: SectorSet,
    known: HashIndex<u32>,
    inspections: Vec<Inspection>,
    seen: HashIndex<()>,
    /// What was done so far.
    pub counters: Counters,
}

impl Judge {
    /// Forgets what belongs to one run.
    pub fn begin_run(&mut self) {
        self.metadata.clear();
        self.begin_cut();
    }

    /// Forgets what belongs to one cut.
    pub fn begin_cut(&mut self) {
        self.known.clear();
        self.inspections.clear();
        self.seen.clear();
    }

    /// Prepares a set of states for [`Judge::state`].
    pub fn adopt(&mut self, set: &mut CrashSet) {
        set.mark_metadata(|sector| self.metadata.contains(sector));
    }

    /// Judges the present state of `set`, unless an equal one was judged before. Returns whether it was new.
    ///
    /// # Errors
    /// What the first oracle that disagrees says.
    pub fn state(
        &mut self,
        subject: &dyn Subject,
        case: &Case<'_>,
        pool: &mut Pool,
        set: &mut CrashSet,
        allowed: &Allowed,
    ) -> Result<bool, Failure> {
        self.counters.states += 1;
        if self.seen.insert(set.state().key, ()).is_some() {
            return Ok(false);
        }
        self.counters.judged += 1;
        let known = self.known.get(&set.state().metadata_key).copied();
        let index = match known {
            Some(index) => index,
            None => self.inspect(subject, case, pool, set),
        };
        let inspection = &self.inspections[index as usize];
        if let Some(corrupt) = &inspection.corrupt {
            return Err(Failure::new("O3", corrupt.clone()));
        }
        if inspection.leaks > case.leaks_max {
            let what = format!("{} clusters leak, {} may", inspection.leaks, case.leaks_max);
            return Err(Failure::new("O8", what));
        }
        check_guest(inspection, case, pool, set.image(), allowed)?;
        Ok(true)
    }

    /// What the guest reads in the present state of `set`, which was judged just now, and how many clusters leak.
    pub fn guest_of(&self, set: &CrashSet, case: &Case<'_>) -> (Vec<Content>, u64) {
        let index = self.known[&set.state().metadata_key];
        let Inspection { guest: sources, leaks, .. } = &self.inspections[index as usize];
        let guest =
            sources.iter().enumerate().map(|(n, s)| s.content(set.image(), case.backing, n)).collect();
        (guest, *leaks)
    }

    fn inspect(
        &mut self,
        subject: &dyn Subject,
        case: &Case<'_>,
        pool: &mut Pool,
        set: &mut CrashSet,
    ) -> u32 {
        self.counters.inspected += 1;
        let before = self.metadata.count();
        let bytes = ImageBytes::new(set.image(), pool, &mut self.metadata);
        let mut inspection = subject.inspect(&bytes, case.config);
        inspection.settle(pool);
        if self.metadata.count() != before {
            self.known.clear();
            self.inspections.clear();
            set.mark_metadata(|sector| self.metadata.contains(sector));
        }
        let index = self.inspections.len() as u32;
        self.inspections.push(inspection);
        self.known.insert(set.state().metadata_key, index);
        index
    }
}

/// Inspects one image outside of any enumeration.
pub fn inspect_once(subject: &dyn Subject, config: &Config, pool: &mut Pool, image: &Image) -> Inspection {
    let mut looked_at = SectorSet::default();
    let mut inspection = subject.inspect(&ImageBytes::new(image, pool, &mut looked_at), config);
    inspection.settle(pool);
    inspection
}

/// Compares what a guest would read with what it may.
///
/// # Errors
/// The first sector that holds anything else.
pub fn check_guest(
    inspection: &Inspection,
    case: &Case<'_>,
    pool: &Pool,
    image: &Image,
    allowed: &Allowed,
) -> Result<(), Failure> {
    for (sector, source) in inspection.guest.iter().enumerate() {
        let found = source.content(image, case.backing, sector);
        let values = allowed.of(sector);
        if !values.contains(&found) {
            let mismatch = Mismatch { sector: sector as u64, found, allowed: values.to_vec() };
            return Err(Failure::wrong_sector("O2", &mismatch, pool));
        }
    }
    if inspection.snapshots.len() != case.snapshots.len() {
        let (are, were) = (inspection.snapshots.len(), case.snapshots.len());
        return Err(Failure::new("O6", format!("there are {are} snapshots, there were {were}")));
    }
    for (sources, values) in inspection.snapshots.iter().zip(case.snapshots) {
        for (sector, (source, value)) in sources.iter().zip(values).enumerate() {
            let found = source.content(image, case.backing, sector);
            if found != *value {
                let mismatch = Mismatch { sector: sector as u64, found, allowed: vec![*value] };
                return Err(Failure::wrong_sector("O6", &mismatch, pool));
            }
        }
    }
    Ok(())
}
