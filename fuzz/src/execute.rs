//! One execution of a target on an input, within the limits of `reliability.md`, 4.9.

use std::time::Duration;

use crate::choices::Choices;
use crate::file::CountingFile;
use crate::heap;
use crate::input::{Content, Input};
use crate::target::{Run, Target};

/// Most bytes of heap one execution may take, beside the file itself.
const HEAP_BYTES_MAX: u64 = 64 << 20;
/// Longest execution, in CPU time: what else runs on the machine does not count. Counting coverage takes three quarters of it.
const TIME_MAX: Duration = Duration::from_secs(if cfg!(feature = "guided") { 4 } else { 1 });

/// How one execution went.
pub struct Executed {
    /// How long it took.
    pub took: Duration,
    /// What is wrong. The text up to ` [` is the same for all of its kind.
    pub complaint: Option<String>,
}

/// Whether a target is for inputs of this kind.
pub fn suits(target: &Target, input: &Input) -> bool {
    match (&target.run, &input.content) {
        (Run::Image(_), Content::File(_)) => true,
        (Run::Bytes(_), Content::Bytes { of, .. }) => *of == target.name,
        _ => false,
    }
}

/// Runs a target on an input that suits it. A panic of the target goes through.
pub fn execute(target: &Target, input: &Input) -> Executed {
    match (&target.run, &input.content) {
        (Run::Image(run), Content::File(scene)) => {
            let file = CountingFile::new(scene.memory());
            let allocated = file.allocated();
            let mut choices = input.choices();
            let (took, heap_bytes, result) = measured(|| run(&file, &mut choices));
            let heap_bytes = heap_bytes.saturating_sub(file.allocated().saturating_sub(allocated));
            let complaint = match result {
                Err(complaint) => Some(complaint),
                Ok(()) if file.ios() > input.ios_max() => Some("I/Os: more than the limit".into()),
                Ok(()) => {
                    beyond(took, heap_bytes).or_else(|| input.limits.broken(target.name, took, heap_bytes))
                }
            };
            Executed { took, complaint }
        }
        (Run::Bytes(run), Content::Bytes { bytes, .. }) => {
            let (took, heap_bytes, result) = measured(|| run(bytes));
            Executed { took, complaint: result.err().or_else(|| beyond(took, heap_bytes)) }
        }
        _ => Executed { took: Duration::ZERO, complaint: Some("the input does not suit the target".into()) },
    }
}

/// How long it took, the most heap it had beside what was there, and what it returned.
fn measured<T>(run: impl FnOnce() -> T) -> (Duration, u64, T) {
    let before = heap::start();
    let began = cpu_time();
    let result = run();
    (cpu_time().saturating_sub(began), heap::peak().saturating_sub(before), result)
}

/// CPU time of this thread so far.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

fn beyond(took: Duration, heap_bytes: u64) -> Option<String> {
    if heap_bytes > HEAP_BYTES_MAX {
        Some(format!("heap: more than the limit [{} MiB]", heap_bytes >> 20))
    } else if took > TIME_MAX {
        Some(format!("time: more than {TIME_MAX:?} [{took:?}]"))
    } else {
        None
    }
}

/// Runs the target of this name on the bytes of a corpus file or a fuzzer: a scene, or the input of a parser.
///
/// # Panics
/// When a rule is broken, or the target panics: that is how a fuzzer learns of it.
pub fn must_hold(target: &'static Target, bytes: &[u8]) {
    let input = Input::of_corpus(target, String::new(), bytes);
    if let Some(complaint) = execute(target, &input).complaint {
        panic!("{}: {complaint}", target.name);
    }
}

impl Input {
    /// What decides in a target.
    fn choices(&self) -> Choices<'_> {
        match &self.content {
            Content::File(scene) if !scene.choices.is_empty() => Choices::Bytes(&scene.choices),
            _ => Choices::Seed(cowbell_difftest::rng::Rng::new(self.seed ^ 0xf022)),
        }
    }
}
