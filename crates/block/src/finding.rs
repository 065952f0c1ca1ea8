//! What a check found: a line for people, and what it is about for those who ask.

use std::fmt;
use std::ops::Deref;

/// A kind of finding, the same for all images.
#[derive(Debug, PartialEq, Eq)]
pub struct Topic {
    /// A word for programs, which stays the same.
    pub name: &'static str,
    /// What it means for the data.
    pub meaning: &'static str,
    /// What a repair does about it.
    pub repair: &'static str,
}

/// Where something was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Whereabouts {
    /// First byte and length in the image file: the entry that is wrong, or the clusters that it is about.
    pub host: Option<(u64, u64)>,
    /// First byte of the disk that is concerned.
    pub guest: Option<u64>,
    /// The snapshot whose mapping it is, counted from 1 in the order of the table; `None` for the disk.
    pub snapshot: Option<u32>,
}

/// One finding. It reads as its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    line: String,
    topic: Option<&'static Topic>,
    place: Whereabouts,
}

impl Finding {
    /// A finding of a kind.
    pub fn new(topic: &'static Topic, line: String) -> Self {
        Self { line, topic: Some(topic), place: Whereabouts::default() }
    }

    /// The same, found at these bytes of the image file.
    pub fn in_file(mut self, offset: u64, len: u64) -> Self {
        self.place.host = Some((offset, len));
        self
    }

    /// The same, concerning the disk from this byte on.
    pub fn on_disk(mut self, guest: u64) -> Self {
        self.place.guest = Some(guest);
        self
    }

    /// The same, in the mapping of a snapshot, counted from 1; 0 is the disk.
    pub fn of_snapshot(mut self, number: u32) -> Self {
        self.place.snapshot = (number > 0).then_some(number);
        self
    }

    /// What kind of finding it is; `None` for a line about the check itself.
    pub fn topic(&self) -> Option<&'static Topic> {
        self.topic
    }

    /// Where it was found.
    pub fn place(&self) -> Whereabouts {
        self.place
    }
}

/// A line about the check itself.
impl From<String> for Finding {
    fn from(line: String) -> Self {
        Self { line, topic: None, place: Whereabouts::default() }
    }
}

impl Deref for Finding {
    type Target = str;

    fn deref(&self) -> &str {
        &self.line
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl PartialEq<&str> for Finding {
    fn eq(&self, line: &&str) -> bool {
        self.line == *line
    }
}
