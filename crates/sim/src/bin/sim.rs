//! `cowbell-sim`: runs the simulation from the command line.
#![forbid(unsafe_code)]

/// A schedule is a world made, run and thrown away in some forty microseconds: a fifth of them went into the C library's
/// allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cowbell_sim::commands::main(std::env::args().skip(1).collect())
}
