//! Header extensions.

use serde_json::json;

use super::super::source::{Fields, until_nul};
use super::super::{Reference, Severity, text};
use super::Image;

/// What the extensions say that others need.
#[derive(Default)]
pub(super) struct Extensions {
    pub backing_format: Option<String>,
    /// Count, bytes and place of the directory.
    pub bitmaps: Option<(u32, u64, u64)>,
    /// Place and bytes of the LUKS header.
    pub crypto: Option<(u64, u64)>,
}

/// Most extensions that are listed.
const EXTENSIONS_MAX: usize = 64;

/// Names of the kinds that are known.
fn name_of(kind: u32) -> Option<&'static str> {
    Some(match kind {
        0xe279_2aca => "backing-format",
        0x6803_f857 => "feature-names",
        0x2385_2875 => "bitmaps",
        0x0537_be77 => "encryption-header",
        0x4441_5441 => "external-data-file",
        _ => return None,
    })
}

impl Image<'_> {
    /// Goes through the extensions.
    pub(super) fn extensions(&mut self) -> Extensions {
        let head = std::mem::take(&mut self.head);
        let start = if self.version >= 3 { head.be32(100) as usize } else { 72 };
        let backing = head.be64(8);
        let end = if backing == 0 { head.len() } else { head.len().min(backing as usize) };
        let (mut at, mut list, mut known) = (start, Vec::new(), Extensions::default());
        while at.saturating_add(8) <= end {
            let (kind, len) = (head.be32(at), head.be32(at + 4) as usize);
            if kind == 0 {
                break;
            }
            let name = name_of(kind).map_or_else(|| format!("{kind:#010x}"), str::to_owned);
            let Some(data) = head.get(at + 8..(at + 8).saturating_add(len)).filter(|_| at + 8 + len <= end)
            else {
                let line =
                    format!("the header extension {name} claims {len} bytes, more than there is room for");
                self.found.remark(Severity::Broken, line);
                break;
            };
            if list.len() < EXTENSIONS_MAX {
                list.push(json!({ "type": name, "length": len }));
            } else if list.len() == EXTENSIONS_MAX {
                self.found.remark(
                    Severity::Note,
                    format!("there are more than {EXTENSIONS_MAX} header extensions"),
                );
                break;
            }
            self.extension(kind, data, &mut known);
            at += 8 + len.next_multiple_of(8);
        }
        if !list.is_empty() {
            self.found.fact("extensions", list);
        }
        self.head = head;
        let has_data_file = self.version >= 3 && self.head.be64(72) & 4 != 0;
        if has_data_file && !self.found.references.iter().any(|r| r.role == "external data file") {
            self.found.remark(Severity::Note, "its data lies in another file, which it does not name");
        }
        known
    }

    fn extension(&mut self, kind: u32, data: &[u8], known: &mut Extensions) {
        match kind {
            0xe279_2aca => known.backing_format = Some(text(until_nul(data))).filter(|name| !name.is_empty()),
            0x2385_2875 => {
                if data.len() != 24 {
                    self.found
                        .remark(Severity::Broken, format!("the bitmaps extension has {} bytes", data.len()));
                }
                known.bitmaps = Some((data.be32(0), data.be64(8), data.be64(16)));
            }
            0x0537_be77 => known.crypto = Some((data.be64(0), data.be64(8))),
            0x4441_5441 => {
                let name = cowbell_block::names::from_bytes(data);
                self.found.references.push(Reference::new("external data file", &name));
            }
            _ if name_of(kind).is_none() => {
                self.found.remark(Severity::Note, format!("nobody knows the header extension {kind:#010x}"));
            }
            _ => {}
        }
    }
}
