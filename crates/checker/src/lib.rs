//! An independent checker of qcow2 images, written from the specification alone.
