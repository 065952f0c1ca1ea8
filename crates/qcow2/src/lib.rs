//! The qcow2 format and its engine.
