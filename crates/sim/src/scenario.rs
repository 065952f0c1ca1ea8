//! A run as text: configuration, operations, faults, schedule and power cut. What fails is written down in this
//! form, shrunk, and replayed as a test from then on.
//!
//! ```text
//! seed 42
//! config cluster_bits=9 sectors=72
//! lanes 2
//! write 0+8 fua
//! discard 8+8
//! fault nth 12 eio once
//! schedule fine 0 1 0 2
//! cut 57 keep 3:0-2,5:0-1 len
//! ```

use std::ops::Range;

use cowbell_block::DebugEvent;

use crate::bitmaps::BitmapOp;
use crate::config::Config;
use crate::crash::Survivors;
use crate::exec::Granularity;
use crate::faults::{Fault, FaultKind, Member, Trigger};

/// Whether the lengths of the image file and of the data file persist, in words.
const LENS: [((bool, bool), &str); 4] = [
    ((true, true), "len"),
    ((false, true), "nolen"),
    ((true, false), "nodatalen"),
    ((false, false), "nolens"),
];

/// What is done with the snapshots of an image. A number beyond the last one begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names of the operations")]
pub enum SnapshotOp {
    Create,
    /// With the VM state, which the snapshot takes from the disk.
    Suspend,
    Apply(u32),
    Delete(u32),
}

/// What is done with key slots, by the number of a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names of the operations")]
pub enum KeyOp {
    Add(u32),
    Remove(u32),
}

/// What an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amendment {
    /// Of version 2 or 3.
    Version(u32),
    /// With refcounts whose width has this logarithm.
    RefcountOrder(u32),
}

/// What a guest does. Ranges are in sectors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names of the operations")]
pub enum GuestOp {
    Write {
        at: Range<u64>,
        fua: bool,
    },
    /// A write of whole clusters that asks to be stored compressed.
    Compressed {
        at: Range<u64>,
    },
    Zero {
        at: Range<u64>,
        unmap: bool,
        fua: bool,
    },
    Discard {
        at: Range<u64>,
    },
    Read {
        at: Range<u64>,
    },
    Status {
        at: Range<u64>,
    },
    Flush,
    /// Changes the length of the disk, to so many sectors.
    Resize {
        to: u64,
    },
    /// Changes the persistent bitmaps, where there are any.
    Bitmap {
        change: BitmapOp,
    },
    /// Writes VM state, where there is any. Sectors are counted from the beginning of its area.
    SaveState {
        at: Range<u64>,
    },
    /// Reads it.
    LoadState {
        at: Range<u64>,
    },
    /// Changes the key slots, where there are any.
    Key {
        change: KeyOp,
    },
    /// Makes a snapshot, or applies or deletes one by its place among those that are there.
    Snapshot {
        change: SnapshotOp,
    },
    /// Starts the operation and forgets it after so many polls: whoever waits may stop, the work must not.
    Abandon {
        polls: u8,
        op: Box<GuestOp>,
    },
    /// Waits for everything before it.
    Wait,
    /// Closes and opens the image; waits for everything before it.
    Reopen,
    /// Changes what the image is, beside everything else; then opens it again, alone.
    Amend {
        change: Amendment,
    },
}

impl GuestOp {
    /// Whether it begins only when everything before it has ended.
    pub fn waits_for_others(&self) -> bool {
        matches!(self, Self::Wait | Self::Reopen)
    }

    /// Whether nothing after it begins before it has ended.
    pub fn holds_up_others(&self) -> bool {
        matches!(self, Self::Wait | Self::Reopen)
    }

    /// The sectors it is about.
    pub fn range(&self) -> Option<&Range<u64>> {
        match self {
            Self::Write { at, .. } | Self::Zero { at, .. } => Some(at),
            Self::Compressed { at } | Self::Discard { at } | Self::Read { at } | Self::Status { at } => {
                Some(at)
            }
            Self::Abandon { op, .. } => op.range(),
            Self::Flush
            | Self::Resize { .. }
            | Self::Snapshot { .. }
            | Self::Bitmap { .. }
            | Self::Key { .. }
            | Self::SaveState { .. }
            | Self::LoadState { .. }
            | Self::Wait
            | Self::Amend { .. }
            | Self::Reopen => None,
        }
    }

    /// The same about other sectors.
    #[must_use]
    pub fn with_range(&self, range: Range<u64>) -> Self {
        let mut op = self.clone();
        match &mut op {
            Self::Write { at, .. } | Self::Zero { at, .. } => *at = range,
            Self::Compressed { at } | Self::Discard { at } | Self::Read { at } | Self::Status { at } => {
                *at = range
            }
            Self::Abandon { op, .. } => **op = op.with_range(range),
            Self::Flush
            | Self::Resize { .. }
            | Self::Snapshot { .. }
            | Self::Bitmap { .. }
            | Self::Key { .. }
            | Self::SaveState { .. }
            | Self::LoadState { .. }
            | Self::Wait
            | Self::Amend { .. }
            | Self::Reopen => {}
        }
        op
    }

    fn to_text(&self) -> String {
        let range = self.range().map_or(String::new(), |r| format!(" {}+{}", r.start, r.end - r.start));
        let (name, flags) = match self {
            Self::Resize { to } => return format!("resize {to}"),
            Self::Bitmap { change } => return format!("bitmap {}", change.to_text()),
            Self::SaveState { at } => return format!("save-state {}+{}", at.start, at.end - at.start),
            Self::LoadState { at } => return format!("load-state {}+{}", at.start, at.end - at.start),
            Self::Key { change: KeyOp::Add(which) } => return format!("key add {which}"),
            Self::Key { change: KeyOp::Remove(which) } => return format!("key remove {which}"),
            Self::Amend { change: Amendment::Version(version) } => return format!("amend version {version}"),
            Self::Amend { change: Amendment::RefcountOrder(order) } => {
                return format!("amend refcount-order {order}");
            }
            Self::Snapshot { change } => {
                return match change {
                    SnapshotOp::Create => "snapshot create".to_owned(),
                    SnapshotOp::Suspend => "snapshot suspend".to_owned(),
                    SnapshotOp::Apply(which) => format!("snapshot apply {which}"),
                    SnapshotOp::Delete(which) => format!("snapshot delete {which}"),
                };
            }
            Self::Abandon { polls, op } => return format!("abandon {polls} {}", op.to_text()),
            Self::Write { fua, .. } => ("write", if *fua { " fua" } else { "" }),
            Self::Zero { unmap, fua, .. } => (
                "zero",
                match (unmap, fua) {
                    (false, false) => "",
                    (true, false) => " unmap",
                    (false, true) => " fua",
                    (true, true) => " unmap fua",
                },
            ),
            Self::Compressed { .. } => ("compressed", ""),
            Self::Discard { .. } => ("discard", ""),
            Self::Read { .. } => ("read", ""),
            Self::Status { .. } => ("status", ""),
            Self::Flush => ("flush", ""),
            Self::Wait => ("wait", ""),
            Self::Reopen => ("reopen", ""),
        };
        format!("{name}{range}{flags}")
    }

    fn parse(words: &[&str]) -> Option<Self> {
        let range = || {
            let (at, len) = words.get(1)?.split_once('+')?;
            let at: u64 = at.parse().ok()?;
            Some(at..at.checked_add(len.parse().ok()?)?)
        };
        let has = |flag: &str| words.contains(&flag);
        Some(match *words.first()? {
            "write" => Self::Write { at: range()?, fua: has("fua") },
            "zero" => Self::Zero { at: range()?, unmap: has("unmap"), fua: has("fua") },
            "compressed" => Self::Compressed { at: range()? },
            "discard" => Self::Discard { at: range()? },
            "read" => Self::Read { at: range()? },
            "status" => Self::Status { at: range()? },
            "abandon" => {
                let op = Box::new(Self::parse(words.get(2..)?)?);
                Self::Abandon { polls: words.get(1)?.parse().ok()?, op }
            }
            "resize" => Self::Resize { to: words.get(1)?.parse().ok()? },
            "snapshot" => Self::Snapshot {
                change: match words.get(1..)? {
                    ["create"] => SnapshotOp::Create,
                    ["suspend"] => SnapshotOp::Suspend,
                    ["apply", which] => SnapshotOp::Apply(which.parse().ok()?),
                    ["delete", which] => SnapshotOp::Delete(which.parse().ok()?),
                    _ => return None,
                },
            },
            "amend" => Self::Amend {
                change: match words.get(1..)? {
                    ["version", version] => Amendment::Version(version.parse().ok()?),
                    ["refcount-order", order] => Amendment::RefcountOrder(order.parse().ok()?),
                    _ => return None,
                },
            },
            "save-state" => Self::SaveState { at: range()? },
            "load-state" => Self::LoadState { at: range()? },
            "key" => Self::Key {
                change: match words.get(1..)? {
                    ["add", which] => KeyOp::Add(which.parse().ok()?),
                    ["remove", which] => KeyOp::Remove(which.parse().ok()?),
                    _ => return None,
                },
            },
            "flush" => Self::Flush,
            "bitmap" => Self::Bitmap { change: BitmapOp::parse(words.get(1..)?)? },
            "wait" => Self::Wait,
            "reopen" => Self::Reopen,
            _ => return None,
        })
    }
}

/// How the steps are picked, in a form that can be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The oldest first.
    Fifo,
    /// From the seed, uniformly.
    Uniform,
    /// From the seed, by priorities with this depth.
    Pct(u32),
    /// The oldest first, but this I/O waits until nothing else can happen.
    Stall(u32),
    /// These choices, then the first.
    Choices(Vec<u16>),
}

/// Where the power is cut, and what survives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Step before which it happens.
    pub step: u64,
    /// What survives; `None` to look at many possibilities.
    pub survivors: Option<Survivors>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Seed of everything random that is left.
    pub seed: u64,
    /// The world.
    pub config: Config,
    /// Requests in flight at most.
    pub lanes: usize,
    /// What the guest does.
    pub ops: Vec<GuestOp>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Where the scheduler has a say.
    pub granularity: Granularity,
    /// How it decides.
    pub schedule: Schedule,
    /// The power cut, if the run is to end with one.
    pub cut: Option<Cut>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 0,
            config: Config::default(),
            lanes: 1,
            ops: Vec::new(),
            faults: Vec::new(),
            granularity: Granularity::IoPoints,
            schedule: Schedule::Fifo,
            cut: None,
        }
    }
}

impl Scenario {
    /// The scenario as text.
    pub fn to_text(&self) -> String {
        let mut out = format!("seed {}\nconfig {}\nlanes {}\n", self.seed, self.config.to_text(), self.lanes);
        for op in &self.ops {
            out.push_str(&op.to_text());
            out.push('\n');
        }
        for fault in &self.faults {
            let trigger = match fault.trigger {
                Trigger::Nth(n) => format!("nth {n}"),
                Trigger::Tagged(event, n) => format!("tag {} {n}", event.name()),
                Trigger::Budget(bytes) => format!("budget {bytes}"),
            };
            let often = if fault.sticky { "sticky" } else { "once" };
            let on = match fault.on {
                Member::Image => String::new(),
                other => format!("{} ", other.name()),
            };
            out.push_str(&format!("fault {on}{trigger} {} {often}\n", fault.kind.name()));
        }
        let grain = if self.granularity == Granularity::Full { "full" } else { "io" };
        out.push_str(&format!("schedule {grain} "));
        match &self.schedule {
            Schedule::Fifo => out.push_str("fifo"),
            Schedule::Uniform => out.push_str("uniform"),
            Schedule::Stall(io) => out.push_str(&format!("stall {io}")),
            Schedule::Pct(depth) => out.push_str(&format!("pct {depth}")),
            Schedule::Choices(list) => {
                out.push_str("choices");
                list.iter().for_each(|c| out.push_str(&format!(" {c}")));
            }
        }
        out.push('\n');
        if let Some(cut) = &self.cut {
            out.push_str(&format!("cut {}", cut.step));
            if let Some(survivors) = &cut.survivors {
                let ranges: Vec<_> =
                    survivors.ranges.iter().map(|(io, from, to)| format!("{io}:{from}-{to}")).collect();
                let lens = (survivors.len_persisted, survivors.data_len_persisted);
                let len = LENS.iter().find(|(which, _)| *which == lens).map_or("len", |(_, name)| name);
                out.push_str(&format!(" keep {len} {}", ranges.join(",")));
            }
            out.push('\n');
        }
        out
    }

    /// Reads what [`Scenario::to_text`] wrote. Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The line that makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut scenario = Self::default();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            scenario.parse_line(line).ok_or_else(|| format!("bad line {line:?}"))??;
        }
        Ok(scenario)
    }

    fn parse_line(&mut self, line: &str) -> Option<Result<(), String>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (*words.first()?, &words[1..]) {
            ("seed", [seed]) => self.seed = seed.parse().ok()?,
            ("config", _) => match Config::parse(line.strip_prefix("config")?) {
                Ok(config) => self.config = config,
                Err(error) => return Some(Err(error)),
            },
            ("lanes", [lanes]) => self.lanes = lanes.parse().ok()?,
            ("fault", rest) => self.faults.push(parse_fault(rest)?),
            ("schedule", [grain, rest @ ..]) => {
                self.granularity = match *grain {
                    "full" => Granularity::Full,
                    "io" => Granularity::IoPoints,
                    _ => return None,
                };
                self.schedule = match rest {
                    ["fifo"] => Schedule::Fifo,
                    ["uniform"] => Schedule::Uniform,
                    ["pct", depth] => Schedule::Pct(depth.parse().ok()?),
                    ["stall", io] => Schedule::Stall(io.parse().ok()?),
                    ["choices", list @ ..] => {
                        Schedule::Choices(list.iter().map(|c| c.parse().ok()).collect::<Option<_>>()?)
                    }
                    _ => return None,
                };
            }
            ("cut", rest) => self.cut = Some(parse_cut(rest)?),
            _ => self.ops.push(GuestOp::parse(&words)?),
        }
        Some(Ok(()))
    }

    /// The operations in the words of `qemu-io`, to ask the reference the same question. `None` if the run has
    /// a power cut, which the reference cannot have.
    pub fn to_qemu_io(&self) -> Option<String> {
        if self.cut.is_some() {
            return None;
        }
        let aio = if self.lanes > 1 { "aio_" } else { "" };
        let mut out = String::new();
        for (number, op) in self.ops.iter().enumerate() {
            let pattern = number % 255 + 1;
            let range = op
                .range()
                .map_or(String::new(), |r| format!("{} {}", r.start * 512, (r.end - r.start) * 512));
            let op = if let GuestOp::Abandon { op, .. } = op { op } else { op };
            out.push_str(&match op {
                GuestOp::Abandon { .. } => String::new(),
                GuestOp::Write { fua, .. } => {
                    format!("{aio}write {}-P {pattern} {range}\n", if *fua { "-f " } else { "" })
                }
                GuestOp::Zero { unmap, fua, .. } => {
                    let (unmap, fua) = (if *unmap { "-u " } else { "" }, if *fua { "-f " } else { "" });
                    format!("{aio}write -z {unmap}{fua}{range}\n")
                }
                GuestOp::Compressed { .. } => format!("write -c -P {pattern} {range}\n"),
                GuestOp::Discard { .. } => format!("discard {range}\n"),
                GuestOp::Read { .. } => format!("{aio}read {range}\n"),
                GuestOp::Status { .. } => format!("alloc {range}\n"),
                GuestOp::Flush => "flush\n".to_owned(),
                GuestOp::Resize { to } => format!("truncate {}\n", to * 512),
                // Not in these words: `qemu-img` does it.
                GuestOp::Snapshot { .. }
                | GuestOp::Bitmap { .. }
                | GuestOp::Key { .. }
                | GuestOp::SaveState { .. }
                | GuestOp::LoadState { .. }
                | GuestOp::Amend { .. } => return None,
                GuestOp::Wait => "aio_flush\n".to_owned(),
                GuestOp::Reopen => "aio_flush\nreopen\n".to_owned(),
            });
        }
        Some(out)
    }
}

fn parse_fault(words: &[&str]) -> Option<Fault> {
    let named = words.first().and_then(|word| Member::ALL.iter().find(|(_, name)| name == word));
    let (on, words) = named.map_or((Member::Image, words), |(on, _)| (*on, &words[1..]));
    let (trigger, rest) = match words {
        ["nth", n, rest @ ..] => (Trigger::Nth(n.parse().ok()?), rest),
        ["tag", event, n, rest @ ..] => {
            (Trigger::Tagged(DebugEvent::from_name(event)?, n.parse().ok()?), rest)
        }
        ["budget", bytes, rest @ ..] => (Trigger::Budget(bytes.parse().ok()?), rest),
        _ => return None,
    };
    let [kind, often] = rest else { return None };
    Some(Fault { on, trigger, kind: FaultKind::from_name(kind)?, sticky: *often == "sticky" })
}

fn parse_cut(words: &[&str]) -> Option<Cut> {
    let step = words.first()?.parse().ok()?;
    let [_, "keep", len, rest @ ..] = words else { return Some(Cut { step, survivors: None }) };
    let mut ranges = Vec::new();
    for item in rest.first().copied().unwrap_or_default().split(',').filter(|i| !i.is_empty()) {
        let (io, range) = item.split_once(':')?;
        let (from, to) = range.split_once('-')?;
        ranges.push((io.parse().ok()?, from.parse().ok()?, to.parse().ok()?));
    }
    let (lens, _) = LENS.iter().find(|(_, name)| name == len)?;
    let (len_persisted, data_len_persisted) = *lens;
    Some(Cut { step, survivors: Some(Survivors { ranges, len_persisted, data_len_persisted }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let text = "seed 42\nconfig cluster_bits=9 sectors=72\nlanes 2\nwrite 0+8 fua\nzero 3+1 unmap\n\
                    discard 8+8\nflush\nresize 80\nsnapshot create\nsnapshot apply 1\nabandon 2 write 3+1\nreopen\nfault nth 12 eio once\n\
                    fault backing nth 3 eio once\nfault tag l2_update 1 short sticky\n\
                    schedule full choices 0 1 0 2\ncut 57 keep len 3:0-2,5:0-1\n";
        let scenario = Scenario::parse(text).expect("well formed");
        assert_eq!(scenario.to_text(), text);
        assert_eq!(scenario.to_qemu_io(), None);
        assert!(Scenario::parse("wriet 0+8").is_err());
    }
}
