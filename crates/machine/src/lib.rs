//! A deterministic RV64GC machine whose only clock is the instruction count.
