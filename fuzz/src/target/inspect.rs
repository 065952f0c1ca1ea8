//! `img inspect`: a report of any file, in few reads, that agrees with the engine about headers.

use cowbell_block::{Buf, Node, Op, Request, Result as BlockResult};
use cowbell_inspect::{Source, inspect as look};
use cowbell_qcow2::Header;

use crate::choices::Choices;
use crate::file::CountingFile;

/// Most reads of one inspection: marks at fixed places, and tables in one piece each.
const READS_MAX: u64 = 5000;

struct Reading<'a>(&'a CountingFile);

impl Source for Reading<'_> {
    fn len(&self) -> u64 {
        Node::len(self.0)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> BlockResult<usize> {
        let Op::Done(done) = self.0.submit(Request::read(offset, Buf::zeroed(buffer.len()))) else {
            unreachable!("memory answers at once")
        };
        done.into_bufs()?.read_at(0, buffer);
        Ok(buffer.len())
    }
}

/// What the engine takes for a header is told as one, and everything could be raw.
pub fn inspect(file: &CountingFile, _: &mut Choices<'_>) -> Result<(), String> {
    let before = file.ios();
    let report = look(&Reading(file));
    if file.is_mutated() {
        return Err("an inspected file is written to".into());
    }
    let reads = file.ios() - before;
    if reads > READS_MAX {
        return Err(format!("an inspection reads {reads} times [more than {READS_MAX}]"));
    }
    if !report.candidates.iter().any(|candidate| candidate.format == "raw") {
        return Err("a file that could not be raw".into());
    }
    let mut head = vec![0; (2 << 20).min(Node::len(file)) as usize];
    let _ = Reading(file).read_at(0, &mut head).map_err(|e| e.to_string())?;
    let found = report.candidates.iter().find(|candidate| candidate.format == "qcow2");
    let told = found.is_some_and(|found| found.facts.get("header-accepted") == Some(&true.into()));
    if told != Header::parse(&head).is_ok() {
        return Err("the report and the engine disagree about a header".into());
    }
    Ok(())
}
