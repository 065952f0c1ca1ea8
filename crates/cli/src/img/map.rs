//! `img map`.

use anyhow::{Result, anyhow};
use cowbell_block::error::errno_text;
use cowbell_host::block_on;
use cowbell_jobs::map::{MapEntry, map};

use super::{Form, form, format_or_options, one_image};
use crate::context::Context;
use crate::face::Face;
use crate::flags::{Args, img as flags};
use crate::open::{How, open};
use crate::out::Out;
use crate::size::{SIZE_MAX, parse_named};

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT)?;
    let bound = |flag, what| match args.value(flag) {
        Some(text) => parse_named(what, text, 0, SIZE_MAX).map(Some),
        None => Ok(None),
    };
    let start = bound(&flags::START_OFFSET, "start offset")?.unwrap_or(0);
    let most = bound(&flags::MAX_LENGTH, "max length")?;
    let name = one_image(args)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let force_share = args.has(&flags::FORCE_SHARE);
    let how = How { image_opts, force_share, ..How::reading(name, format) };
    block_on(async {
        let image = open(cx, &how).await?;
        let len = image.node().len();
        let end = most.map_or(len, |most| start.saturating_add(most).min(len));
        let mut out = Out::new();
        let mut table = Table { form, any: false, failed: false };
        if form == Form::Human {
            out.put(&format!("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File"));
        } else {
            out.put("[");
        }
        let walked = map(&image.node(), start, end, |entry| table.row(cx, &mut out, entry)).await;
        walked.map_err(|e| match e.node_error() {
            Some(source) if cx.face == Face::Cowbell => anyhow!("Could not read file metadata: {source}"),
            Some(source) => anyhow!("Could not read file metadata: {}", errno_text(source.errno())),
            None => anyhow!("{e}"),
        })?;
        if form == Form::Json {
            if !table.any {
                table.row(cx, &mut out, &empty(start));
            }
            out.put("]\n");
        }
        out.flush();
        image.close().await?;
        Ok(u8::from(table.failed))
    })
}

/// What an empty range looks like.
fn empty(start: u64) -> MapEntry {
    MapEntry {
        start,
        len: 0,
        depth: 0,
        present: false,
        zero: false,
        data: false,
        compressed: false,
        place: None,
    }
}

struct Table {
    form: Form,
    any: bool,
    failed: bool,
}

impl Table {
    fn row(&mut self, cx: &Context, out: &mut Out, entry: &MapEntry) {
        match self.form {
            Form::Human => self.human(cx, out, entry),
            Form::Json => {
                if self.any {
                    out.put(",\n");
                }
                out.put(&json_row(entry));
            }
        }
        self.any = true;
    }

    fn human(&mut self, cx: &Context, out: &mut Out, entry: &MapEntry) {
        if !entry.data || entry.zero {
            return;
        }
        let Some((offset, file)) = entry.place.as_ref().filter(|_| !entry.compressed) else {
            // Nobody who reads this table could find the data; the rest of it would mislead.
            if !self.failed {
                cx.report("File contains external, encrypted or compressed clusters.");
            }
            self.failed = true;
            return;
        };
        if self.failed {
            return;
        }
        out.put(&format!("{:<16}{:<16}{:<16}{file}\n", hex(entry.start), hex(entry.len), hex(*offset)));
    }
}

/// C's `%#x`: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

fn json_row(entry: &MapEntry) -> String {
    let mut row = format!(
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
         \"compressed\": {}",
        entry.start, entry.len, entry.depth, entry.present, entry.zero, entry.data, entry.compressed
    );
    if let Some((offset, _)) = &entry.place {
        row.push_str(&format!(", \"offset\": {offset}"));
    }
    row.push('}');
    row
}
