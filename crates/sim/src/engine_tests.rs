//! The engine in the simulated world.

use std::rc::Rc;

use crate::config::Config;
use crate::engine::Engine;
use crate::judge::{Allowed, Case, check_guest, inspect_once};
use crate::lab::{Effort, Lab};
use crate::model::Model;
use crate::rng::Rng;
use crate::workload;

#[test]
fn built_images_are_sound_and_hold_what_they_should() {
    let mut rng = Rng::new(11);
    let mut lab = Lab::new(Rc::new(Engine::default()));
    let random = (0..60).map(|_| Config::random(&mut rng));
    for config in workload::explored_configs().into_iter().chain(random) {
        let built = lab.built(&config);
        let mut pool = lab.pool.lock();
        let inspection = inspect_once(&*lab.subject, &config, &mut pool, &built.image);
        assert_eq!((inspection.corrupt.as_deref(), inspection.leaks), (None, 0), "{}", config.to_text());
        let backing = built.backing.as_deref();
        let case = Case { config: &config, backing, snapshots: &built.snapshots };
        let allowed = Allowed::after_cut(&Model::new(&built.guest), 0);
        check_guest(&inspection, &case, &pool, &built.image, &allowed).expect(&config.to_text());
    }
}

#[test]
fn seeds_pass_every_oracle() {
    let mut lab = Lab::new(Rc::new(Engine::default()));
    for seed in 0..60 {
        let scenario = workload::random(seed);
        if let Err(found) = lab.judge(&scenario, Effort::QUICK) {
            panic!("{}\n{}", found.failure, scenario.to_text());
        }
    }
}
