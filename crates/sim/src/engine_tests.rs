//! The engine in the simulated world: a short turn of everything, for `cargo test`.

use std::rc::Rc;
use std::sync::Arc;

use cowbell_block::{BoxFuture, Node, Request, Result};

use crate::bitmaps::Bitmaps;
use crate::config::{Backing, Config, Crypt, DataPlace, Prestate};
use crate::disk::IoKind;
use crate::engine::Engine;
use crate::events;
use crate::explore;
use crate::image::Built;
use crate::judge::{Allowed, Case, check_guest, inspect_once};
use crate::lab::{Effort, Lab};
use crate::layers;
use crate::model::Model;
use crate::pairs;
use crate::pool::Pool;
use crate::rng::Rng;
use crate::scenario::{GuestOp, Scenario};
use crate::session::initial_bitmaps;
use crate::subject::{Files, ImageBytes, Inspection, Subject};
use crate::workload;

fn lab() -> Lab {
    Lab::new(Rc::new(Engine::default()))
}

#[test]
fn built_images_are_sound_and_hold_what_they_should() {
    let mut rng = Rng::new(11);
    let mut lab = lab();
    let random = (0..60).map(|_| Config::random(&mut rng));
    for config in workload::explored_configs().into_iter().chain(random) {
        let built = lab.built(&config);
        let mut pool = lab.pool.lock();
        let inspection = inspect_once(&*lab.subject, &config, &mut pool, &built.image);
        assert_eq!((inspection.corrupt.clone(), inspection.leaks), (None, 0), "{}", config.to_text());
        let backing = built.backing.as_deref();
        let case = Case { config: &config, backing, shortest: 0, leaks_max: 0 };
        let model = Model::new(&built.guest, &built.snapshots);
        let bitmaps = Bitmaps::new(&initial_bitmaps(&config));
        let allowed = Allowed::after_cut(&model, 0, 1).with_bitmaps(&bitmaps, 0, &model);
        check_guest(&inspection, &case, &pool, &built.image, &allowed)
            .unwrap_or_else(|f| panic!("{f}: {}", config.to_text()));
    }
}

#[test]
fn seeds_pass_every_oracle() {
    let mut lab = lab();
    for seed in 0..150 {
        let scenario = workload::random(seed);
        if let Err(found) = lab.judge(&scenario, Effort::QUICK) {
            panic!("{}\n{}", found.failure, scenario.to_text());
        }
    }
}

#[test]
fn single_operations_pass_every_cut() {
    let mut lab = lab();
    for config in workload::explored_configs().iter().step_by(3) {
        for scenario in explore::sequences(config, 1) {
            if let Err(found) = lab.judge(&scenario, Effort::QUICK) {
                panic!("{}\n{}", found.failure, scenario.to_text());
            }
        }
    }
}

/// T8: whatever the engine announces has failed right after.
#[test]
fn every_debug_event_is_struck() {
    let mut lab = lab();
    if let Err(failed) = explore::strike_every_event(&mut lab, Effort::QUICK) {
        panic!("{}\n{}", failed.1.failure, failed.0.to_text());
    }
    assert_eq!(events::missed(&lab.figures.events_struck), [""; 0], "no fault struck these");
}

#[test]
fn commits_and_rebases_pass() {
    let mut lab = lab();
    for seed in 0..40 {
        layers::run(&mut lab, seed).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn triples_pass() {
    let mut lab = lab();
    for seed in 0..60 {
        let scenario = pairs::triple(seed);
        if let Err(found) = lab.judge(&scenario, Effort::QUICK) {
            panic!("{}\n{}", found.failure, scenario.to_text());
        }
    }
}

#[test]
fn pairs_pass_under_all_schedules() {
    let mut lab = lab();
    for scenario in pairs::scenarios().iter().step_by(97) {
        if let Err(failed) = pairs::all_schedules(&mut lab, scenario, 500) {
            panic!("{}\n{}", failed.1.failure, failed.0.to_text());
        }
    }
}

/// An engine that, beside doing what it should, writes into the backing file.
struct Meddler(Engine);

impl Subject for Meddler {
    fn build(&self, config: &Config, pool: &mut Pool) -> Built {
        self.0.build(config, pool)
    }

    fn open(&self, files: Files, config: &Config) -> BoxFuture<Result<Arc<dyn Node>>> {
        let target = files.backing.clone().expect("the world has a backing file");
        let opening = self.0.open(files, config);
        Box::pin(async move {
            let _refused = target.submit(Request::discard(0, 512)).finish().await;
            opening.await
        })
    }

    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection {
        self.0.inspect(image, config)
    }
}

/// O9 fires, for raw and for qcow2 backing files, and whatever the meddler makes of the refusal.
#[test]
fn a_write_to_the_backing_file_is_found() {
    for backing in [Backing::Raw, Backing::Qcow2Longer] {
        let config = Config { backing, ..Config::default() };
        let scenario = Scenario { config, ops: vec![GuestOp::Read { at: 0..1 }], ..Scenario::default() };
        let found = Lab::new(Rc::new(Meddler(Engine::default()))).run(&scenario).err().expect("found");
        assert_eq!(found.failure.oracle, "O9");
        assert!(lab().run(&scenario).is_ok());
    }
}

/// An engine whose images are looked at by somebody who knows no keys.
struct Blind(Engine);

impl Subject for Blind {
    fn build(&self, config: &Config, pool: &mut Pool) -> Built {
        self.0.build(config, pool)
    }

    fn open(&self, files: Files, config: &Config) -> BoxFuture<Result<Arc<dyn Node>>> {
        self.0.open(files, config)
    }

    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection {
        Inspection { opener: None, ..self.0.inspect(image, config) }
    }
}

/// What is written to an encrypted disk is not there for those without its keys, in the image or in a data file.
#[test]
fn encrypted_data_is_encrypted_wherever_it_is() {
    for data in [DataPlace::Inside, DataPlace::Outside] {
        for crypt in [Crypt::Aes, Crypt::Luks] {
            let config = Config { data, ..workload::encrypted(crypt) };
            let ops = vec![GuestOp::Write { at: 9..12, fua: false }, GuestOp::Flush];
            let scenario = Scenario { config, ops, ..Scenario::default() };
            let found = Lab::new(Rc::new(Blind(Engine::default()))).run(&scenario).err().expect("found");
            assert_eq!(found.failure.oracle, "O2");
            if let Err(found) = lab().judge(&scenario, Effort::QUICK) {
                panic!("{}", found.failure);
            }
        }
    }
}

/// O10: the same seed has the same trace, in a laboratory of its own.
#[test]
fn runs_repeat() {
    for seed in 0..100 {
        let hash = || lab().run(&workload::random(seed)).map(|run| (run.trace_hash, run.choices)).ok();
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}

/// Everything that failed once is tried again, and must pass now.
#[test]
fn scenarios_pass() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("the scenarios are there")
        .map(|e| e.expect("listed").path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "txt")) {
        let text = std::fs::read_to_string(file).expect("readable");
        let scenario = Scenario::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        if let Err(found) = Lab::of(scenario.config.format).judge(&scenario, Effort::FULL) {
            panic!("{}: {}", file.display(), found.failure);
        }
    }
}

/// Flushes that reach the file during the last guest flush of `ops`.
fn barriers(config: &Config, ops: &str) -> usize {
    let text = format!("{ops}\n");
    let scenario = Scenario { config: config.clone(), ..Scenario::parse(&text).expect("well formed") };
    let run = lab().run(&scenario).map_err(|found| found.failure).expect("passes");
    let times = run.guest.durable_times.borrow();
    // The last guest flush ends at the last but one durable time (the close is the last).
    let end = times[times.len() - 2];
    let begin = times.len().checked_sub(3).map_or(0, |i| times[i]);
    let ios = run.history.ios.iter();
    ios.filter(|io| io.kind == IoKind::Flush && io.submitted > begin && io.submitted < end).count()
}

/// The steady case: at most two barriers per flush when something was allocated, one when nothing was.
#[test]
fn a_flush_costs_at_most_two_barriers() {
    for (cluster_bits, sectors) in [(9, 72), (10, 264), (16, 768)] {
        let config = Config { cluster_bits, sectors, prestate: Prestate::Half, ..Config::default() };
        let per = config.cluster_sectors();
        let write = |cluster: u64| format!("write {}+{per}", cluster * per);
        let steady = format!("{}\nflush\n{}\n{}\nflush", write(1), write(3), write(5));
        let allocating = barriers(&config, &steady);
        assert!((1..=2).contains(&allocating), "{allocating} barriers with allocation, {cluster_bits}");
        let in_place = barriers(&config, &format!("{}\nflush\n{}\nflush", write(0), write(2)));
        assert_eq!(in_place, 1, "without allocation, {cluster_bits}");
        let idle = barriers(&config, &format!("{}\nflush\nread 0+1\nflush", write(1)));
        assert!(idle <= 1, "{idle} barriers with nothing to do");
    }
}
