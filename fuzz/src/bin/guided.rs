//! Fuzzing that is guided by coverage: libFuzzer mutates the corpus, and keeps what reaches new code.
//!
//! `COWBELL_FUZZ_TARGET` names the target, the arguments are libFuzzer's. Built by `cargo xtask fuzz`, with the compiler
//! flags that count coverage; it needs a C++ compiler.
#![no_main]
#![deny(unsafe_code)]

use std::sync::OnceLock;

use cowbell_difftest::rng::Rng;
use cowbell_fuzz::target::{Run, TARGETS, Target};
use cowbell_fuzz::{execute, heap, mutate};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

/// The target of this process.
fn target() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("COWBELL_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("COWBELL_FUZZ_TARGET must be one of {}", names.join(", ")))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| execute::must_hold(target(), bytes));

libfuzzer_sys::fuzz_mutator!(|bytes: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut plain = |part: &mut [u8], len: usize| {
        let most = part.len();
        libfuzzer_sys::fuzzer_mutate(part, len, most)
    };
    match target().run {
        Run::Bytes(_) => plain(&mut bytes[..max_size], size),
        Run::Image(_) => {
            let mut rng = Rng::new(u64::from(seed));
            let made = mutate::scene(&bytes[..size], &mut rng, &mut plain).encode();
            if made.len() > max_size {
                return size;
            }
            bytes[..made.len()].copy_from_slice(&made);
            made.len()
        }
    }
});
