//! Long operations over block nodes: convert, compare, map.
