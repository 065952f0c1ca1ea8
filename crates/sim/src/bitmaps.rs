//! What each persistent bitmap must record (O12): whatever changed while it recorded, and since it was cleared. It may
//! record more, and one that calls itself inconsistent says nothing. One that was made is there, one that was removed
//! is not.

use crate::judge::Failure;
use crate::model::{Model, Origin};
use crate::pool::Content;
use crate::recorded::Recorded;
use crate::subject::SectorSet;

/// A time that never comes.
const NEVER: u64 = u64::MAX;

/// What is done with bitmaps. A number beyond the last one begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names of the operations")]
pub enum BitmapOp {
    Add,
    Remove(u32),
    Clear(u32),
    Enable(u32),
    Disable(u32),
    /// Into the first what the second records.
    Merge(u32, u32),
}

impl BitmapOp {
    /// In the words of scenario files.
    pub fn to_text(self) -> String {
        match self {
            Self::Add => "add".to_owned(),
            Self::Remove(which) => format!("remove {which}"),
            Self::Clear(which) => format!("clear {which}"),
            Self::Enable(which) => format!("enable {which}"),
            Self::Disable(which) => format!("disable {which}"),
            Self::Merge(into, from) => format!("merge {into} {from}"),
        }
    }

    /// What [`BitmapOp::to_text`] wrote.
    pub fn parse(words: &[&str]) -> Option<Self> {
        Some(match words {
            ["add"] => Self::Add,
            ["remove", which] => Self::Remove(which.parse().ok()?),
            ["clear", which] => Self::Clear(which.parse().ok()?),
            ["enable", which] => Self::Enable(which.parse().ok()?),
            ["disable", which] => Self::Disable(which.parse().ok()?),
            ["merge", into, from] => Self::Merge(into.parse().ok()?, from.parse().ok()?),
            _ => return None,
        })
    }
}

/// The same with names: what a subject is asked for.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names of the operations")]
pub enum BitmapChange {
    Add(String),
    Remove(String),
    Clear(String),
    Record(String, bool),
    Merge { into: String, from: String },
}

/// Sectors that are recorded from some time on.
#[derive(Clone)]
struct Held {
    /// Since when it is certain.
    since: u64,
    /// Clearings that may have come after this take it away.
    from: u64,
    sectors: SectorSet,
}

#[derive(Clone)]
struct Life {
    name: String,
    /// Begin and end of its making.
    added: (u64, u64),
    removed: (u64, u64),
    clearings: Vec<(u64, u64)>,
    /// Spans in which it certainly recorded.
    recording: Vec<(u64, u64)>,
    held: Vec<Held>,
    /// A change of it failed: nothing is certain.
    lost: bool,
}

/// All bitmaps of a session.
#[derive(Default)]
pub struct Bitmaps {
    lives: Vec<Life>,
}

/// A change under way: which bitmap, since when, and what a merge adds.
pub struct Changing {
    index: usize,
    start: u64,
    op: BitmapOp,
    merged: SectorSet,
}

impl Bitmaps {
    /// The bitmaps that a session begins with.
    pub fn new(there: &[Recorded]) -> Self {
        let life = |recorded: &Recorded| Life {
            held: vec![Held { since: 0, from: 0, sectors: recorded.sectors.clone() }],
            recording: if recorded.recording { vec![(0, NEVER)] } else { Vec::new() },
            // An inconsistent one stays so, and says nothing.
            ..Life::new(recorded.name.clone(), (0, 0))
        };
        Self { lives: there.iter().map(life).collect() }
    }

    /// Begins a change; `None` if there is nothing to change.
    pub fn begin(
        &mut self,
        op: BitmapOp,
        name: String,
        now: u64,
        model: &Model,
    ) -> Option<(BitmapChange, Changing)> {
        let there: Vec<usize> = (0..self.lives.len())
            .filter(|i| !self.lives[*i].lost && self.lives[*i].removed.0 == NEVER)
            .collect();
        let pick = |which: u32| there.get(which as usize % there.len().max(1)).copied();
        let named = |index: usize| self.lives[index].name.clone();
        let mut merged = SectorSet::default();
        let (index, change) = match op {
            BitmapOp::Add => (self.lives.len(), BitmapChange::Add(name.clone())),
            BitmapOp::Remove(which) => pick(which).map(|i| (i, BitmapChange::Remove(named(i))))?,
            BitmapOp::Clear(which) => pick(which).map(|i| (i, BitmapChange::Clear(named(i))))?,
            BitmapOp::Enable(which) => pick(which).map(|i| (i, BitmapChange::Record(named(i), true)))?,
            BitmapOp::Disable(which) => pick(which).map(|i| (i, BitmapChange::Record(named(i), false)))?,
            BitmapOp::Merge(into, from) => {
                let (into, from) = (pick(into)?, pick(from)?);
                merged = self.lives[from].certain(now, model);
                (into, BitmapChange::Merge { into: named(into), from: named(from) })
            }
        };
        match op {
            BitmapOp::Add => self.lives.push(Life::new(name, (now, NEVER))),
            BitmapOp::Remove(_) => self.lives[index].removed = (now, NEVER),
            BitmapOp::Clear(_) => self.lives[index].clearings.push((now, NEVER)),
            BitmapOp::Disable(_) => self.lives[index].stop(now),
            BitmapOp::Enable(_) | BitmapOp::Merge(..) => {}
        }
        Some((change, Changing { index, start: now, op, merged }))
    }

    /// The change succeeded.
    pub fn end(&mut self, changing: Changing, now: u64) {
        let life = &mut self.lives[changing.index];
        match changing.op {
            BitmapOp::Add => {
                life.added.1 = now;
                life.recording.push((now, NEVER));
            }
            BitmapOp::Remove(_) => life.removed.1 = now,
            BitmapOp::Clear(_) => {
                let mine = life.clearings.iter_mut().find(|(start, _)| *start == changing.start);
                mine.into_iter().for_each(|clearing| clearing.1 = now);
            }
            BitmapOp::Enable(_) => {
                if life.recording.last().is_none_or(|(_, until)| *until != NEVER) {
                    life.recording.push((now, NEVER));
                }
            }
            BitmapOp::Disable(_) => {}
            BitmapOp::Merge(..) => {
                life.held.push(Held { since: now, from: changing.start, sectors: changing.merged });
            }
        }
    }

    /// The change failed: nobody knows what it did.
    pub fn fail(&mut self, changing: &Changing) {
        self.lives[changing.index].lost = true;
    }

    /// Nothing is known of any bitmap any more.
    pub fn lose_all(&mut self) {
        self.lives.iter_mut().for_each(|life| life.lost = true);
    }

    /// What each bitmap may say after a cut at `time`.
    pub fn after_cut(&self, time: u64, model: &Model) -> Vec<AllowedBitmap> {
        self.lives
            .iter()
            .filter(|life| life.added.0 <= time)
            .map(|life| life.after_cut(time, model))
            .collect()
    }
}

impl Life {
    fn new(name: String, added: (u64, u64)) -> Self {
        Self {
            name,
            added,
            removed: (NEVER, NEVER),
            clearings: Vec::new(),
            recording: Vec::new(),
            held: Vec::new(),
            lost: false,
        }
    }

    fn stop(&mut self, now: u64) {
        if let Some(last) = self.recording.last_mut() {
            last.1 = last.1.min(now);
        }
    }

    /// Whether a change of a sector is certainly recorded by `time`.
    fn records(&self, origin: &Origin, time: u64) -> bool {
        let while_recording = self.recording.iter().any(|(from, until)| {
            *from < origin.start && (*until == NEVER || *until > time || origin.end < *until)
        });
        let cleared = self.clearings.iter().any(|(start, end)| *start <= time && origin.start <= *end);
        while_recording && !cleared && !origin.by_size
    }

    fn holds(&self, sector: u32, time: u64) -> bool {
        self.held.iter().any(|held| {
            let cleared = self.clearings.iter().any(|(start, end)| *start <= time && *end > held.from);
            held.since <= time && !cleared && held.sectors.contains(sector)
        })
    }

    /// The sectors that it records at `now`, whatever they hold.
    fn certain(&self, now: u64, model: &Model) -> SectorSet {
        let mut out = SectorSet::default();
        for sector in 0..model.shortest(now) {
            let mut origins = model.readable(sector, now).peekable();
            let changed = origins.peek().is_some() && origins.all(|o| o.end < now && self.records(&o, now));
            if changed || self.holds(sector as u32, now) {
                out.insert(sector as u32);
            }
        }
        out
    }

    fn after_cut(&self, time: u64, model: &Model) -> AllowedBitmap {
        let mut must = Vec::new();
        let mut held = SectorSet::default();
        for sector in 0..model.sectors() {
            let values: Vec<Content> = model.values(sector).collect();
            let certain = |value: &Content| {
                let mut same =
                    model.origins(sector).filter(|o| o.value == *value && o.start <= time).peekable();
                same.peek().is_some() && same.all(|o| self.records(&o, time))
            };
            must.push(values.into_iter().filter(certain).collect());
            if self.holds(sector as u32, time) {
                held.insert(sector as u32);
            }
        }
        AllowedBitmap {
            name: self.name.clone(),
            must_be_there: !self.lost && self.added.1 <= time && self.removed.0 > time,
            may_be_there: self.lost || self.removed.1 > time,
            certain: !self.lost,
            must,
            held,
        }
    }
}

/// What one bitmap may say.
pub struct AllowedBitmap {
    name: String,
    must_be_there: bool,
    may_be_there: bool,
    /// Whether anything is known of what it records.
    certain: bool,
    /// For each sector the contents that it must have recorded.
    must: Vec<Vec<Content>>,
    held: SectorSet,
}

/// Holds what bitmaps say against what they may, for the first `sectors` of a disk.
///
/// # Errors
/// The first bitmap that says anything else.
pub fn check(
    allowed: &[AllowedBitmap],
    found: &[Recorded],
    sectors: usize,
    holds: impl Fn(usize) -> Content,
) -> Result<(), Failure> {
    let fail = |what: String| Err(Failure::new("O12", what));
    for bitmap in allowed {
        let Some(recorded) = found.iter().find(|recorded| recorded.name == bitmap.name) else {
            if bitmap.must_be_there {
                return fail(format!("the bitmap '{}' is not there", bitmap.name));
            }
            continue;
        };
        if !bitmap.may_be_there {
            return fail(format!("the bitmap '{}' is there again", bitmap.name));
        }
        if !recorded.consistent || !bitmap.certain {
            continue;
        }
        let changed = |sector: &usize| {
            bitmap.held.contains(*sector as u32)
                || bitmap.must.get(*sector).is_some_and(|must| must.contains(&holds(*sector)))
        };
        let silent = |sector: &usize| !recorded.sectors.contains(*sector as u32);
        if let Some(sector) = (0..sectors).filter(silent).find(changed) {
            return fail(format!("sector {sector} changed and the bitmap '{}' does not say so", bitmap.name));
        }
    }
    match found.iter().find(|recorded| allowed.iter().all(|bitmap| bitmap.name != recorded.name)) {
        Some(recorded) => fail(format!("nobody made the bitmap '{}'", recorded.name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(sectors: &[u32]) -> Recorded {
        let mut set = SectorSet::default();
        sectors.iter().for_each(|sector| set.insert(*sector));
        Recorded { name: "a".into(), consistent: true, recording: true, sectors: set }
    }

    fn holds(bitmaps: &Bitmaps, model: &Model, time: u64, disk: &[Content], says: &[u32]) -> bool {
        let allowed = bitmaps.after_cut(time, model);
        check(&allowed, &[recorded(says)], disk.len(), |sector| disk[sector]).is_ok()
    }

    #[test]
    fn changes_are_recorded_until_they_are_cleared() {
        let mut model = Model::new(&[1, 2], &[]);
        let mut bitmaps = Bitmaps::new(&[recorded(&[])]);
        let write = model.begin_write(5, 0, std::iter::once(7));
        model.end(6, write, true);
        assert!(holds(&bitmaps, &model, 8, &[7, 2], &[0]) && !holds(&bitmaps, &model, 8, &[7, 2], &[]));
        assert!(holds(&bitmaps, &model, 5, &[1, 2], &[]), "the write did not survive");
        let (_, clearing) =
            bitmaps.begin(BitmapOp::Clear(0), String::new(), 9, &model).expect("there is one");
        bitmaps.end(clearing, 10);
        assert!(holds(&bitmaps, &model, 12, &[7, 2], &[]) && holds(&bitmaps, &model, 12, &[7, 2], &[0]));
        let (_, off) = bitmaps.begin(BitmapOp::Disable(0), String::new(), 13, &model).expect("there is one");
        bitmaps.end(off, 14);
        let write = model.begin_write(15, 1, std::iter::once(8));
        model.end(16, write, true);
        assert!(holds(&bitmaps, &model, 20, &[7, 8], &[]));
    }
}
