//! The list of differences, printed as they are found.

use cowbell_jobs::diff::{Kind, Written};
use serde_json::Value;

use super::super::Form;
use super::Next;
use crate::out::Out;
use crate::size::human;

/// Prints the list; neighbours of one kind become one line.
pub(super) struct Report {
    form: Form,
    quiet: bool,
    out: Out,
    open: Option<(u64, u64, Option<Kind>)>,
    extents: u64,
    bytes: u64,
}

impl Report {
    pub fn new(form: Form, quiet: bool) -> Self {
        Self { form, quiet, out: Out::new(), open: None, extents: 0, bytes: 0 }
    }

    /// Whether anything was found.
    pub fn differs(&self) -> bool {
        self.extents > 0
    }

    /// What comes before the list.
    pub fn begin(&mut self, a: &Value, b: &Value, bitmap: Option<&str>) {
        match self.form {
            _ if self.quiet => {}
            Form::Human => self.out.line(&format!("{:<16}{:<16}{}", "Offset", "Length", "Difference")),
            Form::Json => {
                let bitmap = bitmap.map(|name| format!("    \"bitmap\": {},\n", Value::from(name)));
                self.out.put(&format!(
                    "{{\n    \"a\": {a},\n    \"b\": {b},\n{}    \"extents\": [",
                    bitmap.unwrap_or_default()
                ));
            }
        }
    }

    /// Takes the next one.
    pub fn take(&mut self, next: &Next) {
        self.bytes += next.len;
        if let Some(open) =
            self.open.as_mut().filter(|open| open.0 + open.1 == next.start && open.2 == next.kind)
        {
            open.1 += next.len;
            return;
        }
        let done = self.open.replace((next.start, next.len, next.kind));
        self.put(done);
    }

    fn put(&mut self, done: Option<(u64, u64, Option<Kind>)>) {
        let Some((start, len, kind)) = done else { return };
        self.extents += 1;
        let (word, text) = words(kind);
        match self.form {
            _ if self.quiet => {}
            Form::Human => self.out.line(&format!("{start:<#16x}{len:<#16x}{text}")),
            Form::Json => {
                let lead = if self.extents > 1 { "," } else { "" };
                self.out.put(&format!(
                    "{lead}\n        {{ \"start\": {start}, \"length\": {len}, \"kind\": \"{word}\" }}"
                ));
            }
        }
    }

    /// What comes after the list.
    pub fn end(&mut self, stored: Option<Written>) {
        let last = self.open.take();
        self.put(last);
        let (extents, bytes) = (self.extents, self.bytes);
        match self.form {
            _ if self.quiet => {}
            Form::Human => {
                self.out.line(&match extents {
                    0 => "Nothing differs.".to_owned(),
                    1 => format!("1 extent with {} ({bytes} bytes) differs.", human(bytes)),
                    _ => format!("{extents} extents with {} ({bytes} bytes) differ.", human(bytes)),
                });
                if let Some(Written { data, zeroes }) = stored {
                    self.out.line(&format!(
                        "The overlay stores {data} bytes of data and {zeroes} of zeroes, and reads as the second \
                         image."
                    ));
                }
            }
            Form::Json => {
                self.out.put(if extents > 0 { "\n    ],\n" } else { "],\n" });
                if let Some(Written { data, zeroes }) = stored {
                    self.out.put(&format!(
                        "    \"overlay\": {{ \"data-bytes\": {data}, \"zero-bytes\": {zeroes} }},\n"
                    ));
                }
                self.out.put(&format!("    \"different-extents\": {extents},\n"));
                self.out.put(&format!("    \"different-bytes\": {bytes}\n}}\n"));
            }
        }
        self.out.flush();
    }
}

/// A kind of difference for programs and for people.
fn words(kind: Option<Kind>) -> (&'static str, &'static str) {
    match kind {
        Some(Kind::Data) => ("data", "data differs"),
        Some(Kind::ZeroInA) => ("zero-in-a", "zeroes in the first"),
        Some(Kind::ZeroInB) => ("zero-in-b", "zeroes in the second"),
        Some(Kind::OnlyInA) => ("only-in-a", "behind the end of the second"),
        Some(Kind::OnlyInB) => ("only-in-b", "behind the end of the first"),
        None => ("marked", "marked by the bitmap"),
    }
}
