//! `img inspect`: an untrusted file, looked at by a process that can do nothing else.

mod text;

use std::time::Duration;

use anyhow::{Result, bail};
use cowbell_block::registry::{PROBE_BYTES, Role};
use cowbell_host::sandbox::{self, Confinement, Limits, Part, Untrusted};
use cowbell_inspect::{Candidate, Reference, Remark, Report, Source, inspect};
use serde_json::{Map, Value, json};

use super::{Form, form, one_image};
use crate::context::{Context, usage};
use crate::flags::{Args, img as flags, look};
use crate::json;
use crate::out::Out;

/// What looking at any file may use. Pieces and lists are bounded far below it.
const LIMITS: Limits = Limits { memory_bytes: 256 << 20, cpu_seconds: 20 };
/// For how long the file is read.
const TIME: Duration = Duration::from_secs(15);

/// Whether the process has to be confined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sandbox {
    Require,
    Auto,
    Off,
}

/// The opened file.
struct Opened(Untrusted);

impl Source for Opened {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> cowbell_block::Result<usize> {
        self.0.read_at(offset, buffer)
    }
}

/// All that is told.
struct Told<'a> {
    name: &'a str,
    report: Report,
    /// What each driver says of the first bytes.
    probes: Vec<(&'static str, u8)>,
    confinement: Option<Confinement>,
}

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT)?;
    let sandbox = match args.value(&look::SANDBOX) {
        None | Some("auto") => Sandbox::Auto,
        Some("require") => Sandbox::Require,
        Some("off") => Sandbox::Off,
        Some(other) => {
            return Err(usage(format!("--sandbox is one of require, auto and off, not '{other}'")));
        }
    };
    let name = one_image(args)?;
    let file = Opened(Untrusted::open(name, TIME)?);
    // Made before the process gives up what making it could need.
    let drivers: Vec<_> =
        cx.registry().drivers().filter(|driver| driver.role() == Role::Format).cloned().collect();
    let mut out = Out::new();
    sandbox::limit(LIMITS)?;
    let confinement = (sandbox != Sandbox::Off).then(sandbox::confine);
    if sandbox == Sandbox::Require
        && let Some(reason) = confinement.as_ref().and_then(lacking)
    {
        bail!("this process cannot be confined: {reason}; the file was not looked at");
    }
    let mut head = vec![0; PROBE_BYTES];
    let there = file.read_at(0, &mut head).unwrap_or(0);
    let mut probes: Vec<_> = drivers.iter().map(|d| (d.name(), d.probe(&head[..there]))).collect();
    probes.retain(|(_, score)| *score > 0);
    probes.sort_by_key(|(name, score)| (std::cmp::Reverse(*score), *name));
    let told = Told { name, report: inspect(&file), probes, confinement };
    out.put(&match form {
        Form::Json => json::text(&json_value(&told)),
        Form::Human => text::text(&told),
    });
    out.flush();
    Ok(0)
}

/// What is missing for the process to be confined.
fn lacking(confinement: &Confinement) -> Option<String> {
    let lack = |what: &str, part: &Part| match part {
        Part::Holds(_) => None,
        Part::Partly(reason) | Part::Absent(reason) => Some(format!("{what}: {reason}")),
    };
    lack("landlock", &confinement.landlock).or_else(|| lack("seccomp", &confinement.seccomp))
}

fn json_value(told: &Told<'_>) -> Value {
    let probes: Vec<Value> =
        told.probes.iter().map(|(driver, score)| json!({ "driver": driver, "score": score })).collect();
    json!({
        "filename": told.name,
        "length": told.report.len,
        "confinement": confinement_value(told.confinement.as_ref()),
        "ambiguous": told.report.is_ambiguous(),
        "probes": probes,
        "candidates": told.report.candidates.iter().map(candidate_value).collect::<Vec<_>>(),
        "remarks": told.report.remarks.iter().map(remark_value).collect::<Vec<_>>(),
    })
}

fn confinement_value(confinement: Option<&Confinement>) -> Value {
    let word = |part: Option<&Part>| match part {
        Some(Part::Holds(_)) => "enforced",
        Some(Part::Partly(_)) => "partly",
        Some(Part::Absent(_)) => "absent",
        None => "off",
    };
    json!({
        "landlock": word(confinement.map(|c| &c.landlock)),
        "seccomp": word(confinement.map(|c| &c.seccomp)),
        "memory-bytes": LIMITS.memory_bytes,
        "cpu-seconds": LIMITS.cpu_seconds,
    })
}

fn candidate_value(candidate: &Candidate) -> Value {
    json!({
        "format": candidate.format,
        "certainty": candidate.certainty,
        "evidence": candidate.evidence,
        "facts": candidate.facts,
        "references": candidate.references.iter().map(reference_value).collect::<Vec<_>>(),
        "remarks": candidate.remarks.iter().map(remark_value).collect::<Vec<_>>(),
    })
}

fn reference_value(reference: &Reference) -> Value {
    let mut value = json!({
        "role": reference.role,
        "name": reference.name,
        "kind": reference.kind.word(),
    });
    if !reference.details.is_empty() {
        value["details"] = Value::Object(Map::clone(&reference.details));
    }
    value
}

fn remark_value(remark: &Remark) -> Value {
    json!({ "severity": remark.severity.word(), "text": remark.text })
}
