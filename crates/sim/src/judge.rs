//! The verdict on one image that a power cut may have left: metadata (O3) and data (O2), and snapshots (O6).
//!
//! Checking the metadata is the expensive part, and most crash states differ in data only. So the inspection is
//! remembered by a hash of the sectors it looked at. A remembered result holds for another image if all these
//! sectors are equal; when an inspection looks at a sector outside the set, the memory is emptied and the set
//! grows. This is exact, whatever the engine tags as metadata.

use crate::bitmaps::{self, AllowedBitmap, Bitmaps};
use crate::config::Config;
use crate::crash::CrashSet;
use crate::keys::Keys;
use crate::model::{Kept, Mismatch, Model};
use crate::pool::{Content, HashIndex, Pool, ZERO};
use crate::session::{Start, empty_states};
use crate::stamp::describe;
use crate::subject::{Area, ImageBytes, Inspection, SectorSet, Source, Subject};
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

/// What each guest sector may hold, for each length that the disk may have.
#[derive(Default)]
pub struct Allowed {
    cases: Vec<AllowedCase>,
    /// Every list of snapshots that may be there.
    lists: Vec<Vec<Kept>>,
    /// Every value that each sector was ever given, if blocks larger than a sector must not be torn.
    histories: Vec<Vec<Content>>,
    /// Sectors of a block.
    grain: usize,
    /// What the bitmaps may say, where there are any.
    bitmaps: Vec<AllowedBitmap>,
    /// Passphrases that must open the image, and those that may.
    keys: Option<(Keys, Keys)>,
    /// The same for the VM state area, where it is looked at.
    state: Option<Box<Allowed>>,
}

#[derive(Default)]
struct AllowedCase {
    sectors: u64,
    starts: Vec<u32>,
    values: Vec<Content>,
}

impl AllowedCase {
    fn of(&self, sector: usize) -> &[Content] {
        &self.values[self.starts[sector] as usize..self.starts[sector + 1] as usize]
    }
}

impl Allowed {
    /// After a power cut at `time`; blocks of `grain` sectors are never torn.
    pub fn after_cut(model: &Model, time: u64, grain: u64) -> Self {
        let mut allowed = Self { grain: grain as usize, ..Self::default() };
        for (sectors, size) in model.sizes_after_cut(time) {
            let mut case = AllowedCase { sectors, ..AllowedCase::default() };
            for sector in 0..sectors {
                case.starts.push(case.values.len() as u32);
                model.allowed_after_cut(time, sector, size, &mut case.values);
            }
            case.starts.push(case.values.len() as u32);
            allowed.cases.push(case);
        }
        let kept = |list: &[usize]| list.iter().map(|snapshot| model.kept(*snapshot).clone()).collect();
        allowed.lists = model.lists_after_cut(time).map(kept).collect();
        if grain > 1 {
            allowed.histories = (0..model.sectors()).map(|sector| model.values(sector).collect()).collect();
        }
        allowed
    }

    /// The same with what bitmaps may say after a cut at `time`.
    #[must_use]
    pub fn with_bitmaps(mut self, bitmaps: &Bitmaps, time: u64, model: &Model) -> Self {
        self.bitmaps = bitmaps.after_cut(time, model);
        self
    }

    /// The same with the passphrases that must open the image, and those that may.
    #[must_use]
    pub fn with_keys(mut self, keys: (Keys, Keys)) -> Self {
        self.keys = Some(keys);
        self
    }

    /// The same with what the VM state area may hold.
    #[must_use]
    pub fn with_state(mut self, state: Self) -> Self {
        self.state = Some(Box::new(state));
        self
    }

    /// No passphrase is lost, and none opens what it was taken from (M3).
    fn check_keys(&self, found: Keys) -> Result<(), Failure> {
        let Some((must, may)) = self.keys else { return Ok(()) };
        if found & must == must && found & !may == 0 && found != 0 {
            return Ok(());
        }
        let what = format!("passphrases {found:#b} open the image; {must:#b} must, {may:#b} may");
        Err(Failure::new("M3", what))
    }

    /// Compares what each sector of a disk of so many sectors holds.
    fn check(&self, sectors: usize, found: impl Fn(usize) -> Content, pool: &Pool) -> Result<(), Failure> {
        let mut wrong = None;
        for case in self.cases.iter().filter(|case| case.sectors == sectors as u64) {
            match (0..sectors).find(|sector| !case.of(*sector).contains(&found(*sector))) {
                None => return self.check_blocks(sectors, found, pool),
                Some(sector) => wrong = Some((case, sector)),
            }
        }
        Err(match wrong {
            Some((case, sector)) => {
                let allowed = case.of(sector).to_vec();
                let mismatch = Mismatch { sector: sector as u64, found: found(sector), allowed };
                Failure::wrong_sector("O2", &mismatch, pool)
            }
            None => {
                let lengths: Vec<u64> = self.cases.iter().map(|case| case.sectors).collect();
                Failure::new("O2", format!("the disk has {sectors} sectors; allowed: {lengths:?}"))
            }
        })
    }

    /// Snapshots never change, and are there or not as a whole (O6, M3).
    fn check_snapshots(
        &self,
        disks: &[Vec<Source>],
        found: impl Fn(usize, usize) -> Content,
        pool: &Pool,
    ) -> Result<(), Failure> {
        let mut failure = None;
        for list in self.lists.iter().filter(|list| list.len() == disks.len()) {
            match list
                .iter()
                .enumerate()
                .find_map(|(index, kept)| wrong_in(kept, &disks[index], |s| found(index, s)))
            {
                None => return Ok(()),
                Some(mismatch) => failure = Some(Failure::wrong_sector("O6", &mismatch, pool)),
            }
        }
        let counts: Vec<usize> = self.lists.iter().map(Vec::len).collect();
        let what = || format!("there are {} snapshots; allowed: {counts:?}", disks.len());
        Err(failure.unwrap_or_else(|| Failure::new("O6", what())))
    }

    /// Every block holds what one write gave it (G2 where the host's blocks are larger than a sector).
    fn check_blocks(
        &self,
        sectors: usize,
        found: impl Fn(usize) -> Content,
        pool: &Pool,
    ) -> Result<(), Failure> {
        if self.histories.is_empty() {
            return Ok(());
        }
        for first in (0..sectors).step_by(self.grain) {
            let block = first..(first + self.grain).min(sectors);
            let is_from = |write: usize| {
                block.clone().all(|sector| self.histories[sector].get(write) == Some(&found(sector)))
            };
            if !(0..self.histories[first].len()).any(is_from) {
                let parts: Vec<String> = block.map(|sector| describe(pool, found(sector))).collect();
                let what = format!("the block of sector {first} is torn: {}", parts.join(", "));
                return Err(Failure::new("O2", what));
            }
        }
        Ok(())
    }
}

/// The first sector of a snapshot that holds what it must not.
fn wrong_in(kept: &Kept, disk: &[Source], found: impl Fn(usize) -> Content) -> Option<Mismatch> {
    if kept.sectors() != disk.len() {
        let (sector, found) = (disk.len() as u64, ZERO);
        return Some(Mismatch { sector, found, allowed: Vec::new() });
    }
    let sector = (0..disk.len()).find(|sector| !kept.of(*sector).contains(&found(*sector)))?;
    Some(Mismatch { sector: sector as u64, found: found(sector), allowed: kept.of(sector).to_vec() })
}

/// What stays the same while the states of one run are judged.
pub struct Case<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The backing file's content.
    pub backing: Option<&'a [Content]>,
    /// Sectors that the disk always has: what fell off is remembered by no bitmap.
    pub shortest: usize,
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
    /// States judged whose metadata the reference has given its verdict on.
    pub shown: u64,
}

/// One inspection of metadata, and what it was of.
struct Inspected {
    inspection: Inspection,
    /// A hash of everything that was looked at, and of the file's length: equal in any two images with equal metadata.
    metadata: u64,
    reference: Asked,
}

/// Whether the reference was asked about some metadata.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    NotYet,
    No,
    Yes,
}

/// Judges images.
#[derive(Default)]
pub struct Judge {
    metadata: SectorSet,
    known: HashIndex<u32>,
    inspections: Vec<Inspected>,
    looked_at: SectorSet,
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
        let Inspected { inspection, reference, .. } = &self.inspections[index as usize];
        if let Some(corrupt) = &inspection.corrupt {
            return Err(corrupt.clone());
        }
        if inspection.leaks > case.leaks_max && !inspection.dirty {
            let what = format!("{} clusters leak, {} may", inspection.leaks, case.leaks_max);
            return Err(Failure::new("O8", what));
        }
        check_guest(inspection, case, pool, set.image(), allowed)?;
        self.counters.shown += u64::from(*reference == Asked::Yes);
        Ok(true)
    }

    /// Lets `ask` decide whether the reference is asked about the metadata of the present state of `set`, which was
    /// judged just now; once for each metadata.
    ///
    /// # Errors
    /// Those of `ask`.
    pub fn show(
        &mut self,
        set: &CrashSet,
        ask: impl FnOnce(u64, &Inspection) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let index = self.known[&set.state().metadata_key] as usize;
        let inspected = &mut self.inspections[index];
        if inspected.reference == Asked::NotYet {
            let asked = ask(inspected.metadata, &inspected.inspection)?;
            inspected.reference = if asked { Asked::Yes } else { Asked::No };
            self.counters.shown += u64::from(asked);
        }
        Ok(())
    }

    /// What was found in the present state of `set`, which was judged just now.
    pub fn inspection(&self, set: &CrashSet) -> &Inspection {
        &self.inspections[self.known[&set.state().metadata_key] as usize].inspection
    }

    /// How a session begins with the present state of `set`, which was judged just now.
    pub fn start(&self, set: &CrashSet, case: &Case<'_>, pool: &Pool) -> Start {
        let inspection = self.inspection(set);
        let contents = |sources: &Vec<Source>| {
            let of = |(n, s): (usize, &Source)| inspection.content(*s, set.image(), case.backing, n, pool);
            sources.iter().enumerate().map(of).collect()
        };
        Start {
            image: set.image().clone(),
            guest: contents(&inspection.guest),
            snapshots: inspection.snapshots.iter().map(contents).collect(),
            bitmaps: inspection.recorded.clone().unwrap_or_default(),
            keys: inspection.keys,
            state: match case.config.vm_state {
                true => inspection.states(set.image(), pool),
                false => empty_states(inspection.snapshots.len()),
            },
            generation: 1,
            leaks: inspection.leaks,
        }
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
        self.looked_at.clear();
        let bytes = ImageBytes::new(set.image(), pool, &mut self.looked_at);
        let mut inspection = subject.inspect(&bytes, case.config);
        inspection.settle(pool);
        self.looked_at.members().iter().for_each(|sector| self.metadata.insert(*sector));
        if self.metadata.count() != before {
            self.known.clear();
            self.inspections.clear();
            set.mark_metadata(|sector| self.metadata.contains(sector));
        }
        let index = self.inspections.len() as u32;
        let metadata = set.hash_of(self.looked_at.members(), pool);
        self.inspections.push(Inspected { inspection, metadata, reference: Asked::NotYet });
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
    let content =
        |source: Source, sector: usize| inspection.content(source, image, case.backing, sector, pool);
    let found = |sector: usize| content(inspection.guest[sector], sector);
    allowed.check_keys(inspection.keys)?;
    allowed.check(inspection.guest.len(), found, pool)?;
    let kept = |index: usize, sector: usize| content(inspection.snapshots[index][sector], sector);
    allowed.check_snapshots(&inspection.snapshots, kept, pool)?;
    if let Some(state) = &allowed.state {
        let of = |area: &Area, at: usize| {
            inspection.content(area.sources[at], image, None, area.first as usize + at, pool)
        };
        let about = |failure: Failure| Failure::new(failure.oracle, format!("VM state: {}", failure.what));
        let sectors = inspection.state.sources.len();
        state.check(sectors, |at| of(&inspection.state, at), pool).map_err(about)?;
        let areas = &inspection.snapshot_states;
        let disks: Vec<_> = areas.iter().map(|area| area.sources.clone()).collect();
        state.check_snapshots(&disks, |index, at| of(&areas[index], at), pool).map_err(about)?;
    }
    match &inspection.recorded {
        Some(recorded) => {
            let sectors = inspection.guest.len().min(case.shortest);
            bitmaps::check(&allowed.bitmaps, recorded, sectors, found)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight sectors written together are old together or new together, and a length that nobody gave is found.
    #[test]
    fn torn_blocks_and_wrong_lengths_are_found() {
        let mut pool = Pool::default();
        let mut value = |byte: u8| pool.intern(&[byte; 512]);
        let (old, new): (Vec<_>, Vec<_>) = (1..9).map(|byte| (value(byte), value(byte + 100))).unzip();
        let mut model = Model::new(&old, &[]);
        let _under_way = model.begin_write(2, 0, new.iter().copied());
        let torn: Vec<_> = old[..3].iter().chain(&new[3..]).copied().collect();
        let holds = |grain: u64, disk: &[Content]| {
            let allowed = Allowed::after_cut(&model, 5, grain);
            allowed.check(disk.len(), |sector| disk[sector], &pool).is_ok()
        };
        assert!(holds(8, &old) && holds(8, &new) && holds(1, &torn));
        assert!(!holds(8, &torn));
        assert!(!holds(1, &old[..7]), "nobody made the disk shorter");
    }
}
