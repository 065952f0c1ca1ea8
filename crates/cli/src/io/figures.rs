//! The lines about sizes and times.

use std::fmt::Write;
use std::time::Duration;

use crate::size::io_form;

/// What a finished request is reported with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// `read`, `wrote`, `discard`.
    pub(super) verb: &'static str,
    pub(super) offset: u64,
    /// Bytes asked for.
    pub(super) asked: u64,
    /// Bytes done.
    pub(super) done: u64,
    pub(super) took: Duration,
}

/// How requests are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Human,
    Machine,
}

/// The report, with its newlines.
pub(super) fn text(figures: &Figures, style: Style) -> String {
    let Figures { verb, offset, asked, done, took } = *figures;
    let seconds = took.as_secs_f64().max(1e-9);
    let (rate, ops) = (done as f64 / seconds, 1.0 / seconds);
    match style {
        Style::Machine => format!("{done},1,{},{rate:.3},{ops:.3}\n", clock(took, true)),
        Style::Human => format!(
            "{verb} {done}/{asked} bytes at offset {offset}\n\
             {}, 1 ops; {} ({}/sec and {ops:.4} ops/sec)\n",
            io_form(done as f64),
            clock(took, false),
            io_form(rate)
        ),
    }
}

/// `SS.ss sec`, or `H:MM:SS.ss` from a minute on or when a fixed form is wanted.
fn clock(took: Duration, fixed: bool) -> String {
    let whole = took.as_secs();
    let seconds = (whole % 60) as f64 + f64::from(took.subsec_nanos()) / 1e9;
    match fixed || whole >= 60 {
        true => format!("{}:{:02}:{seconds:05.2}", whole / 3600, whole / 60 % 60),
        false => format!("{seconds:05.2} sec"),
    }
}

/// Bytes as `read -v` shows them: sixteen per line.
pub(super) fn dump(offset: u64, bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 5);
    for (index, line) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "{:08x}:  ", offset + index as u64 * 16);
        for byte in line {
            let _ = write!(out, "{byte:02x} ");
        }
        out.push(' ');
        out.extend(
            line.iter().map(|byte| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' }),
        );
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_references_form() {
        let figures =
            Figures { verb: "read", offset: 0, asked: 48, done: 48, took: Duration::from_micros(290) };
        assert_eq!(
            text(&figures, Style::Human),
            "read 48/48 bytes at offset 0\n48 bytes, 1 ops; 00.00 sec (161.638 KiB/sec and 3448.2759 ops/sec)\n"
        );
        assert_eq!(text(&figures, Style::Machine), "48,1,0:00:00.00,165517.241,3448.276\n");
        assert_eq!(clock(Duration::from_millis(61_500), false), "0:01:01.50");
    }

    #[test]
    fn dumps_show_letters_and_digits_only() {
        assert_eq!(dump(16, b"aZ 0\x11"), "00000010:  61 5a 20 30 11  aZ.0.\n");
    }
}
