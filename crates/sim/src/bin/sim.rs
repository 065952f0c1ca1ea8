//! `cowbell-sim`: runs the simulation from the command line.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    cowbell_sim::commands::main(std::env::args().skip(1).collect())
}
