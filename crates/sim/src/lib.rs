//! The simulated world from one seed.
