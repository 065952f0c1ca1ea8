//! The real world: files, block devices, locks, executors.
//!
//! | module | duty |
//! |---|---|
//! | `path` | names and the bytes they stand for |
//! | [`mod@file`] | the protocol node over a regular file or a block device |
//! | `driver` | that node for the registry: options, creation |
//! | [`lock`] | image locks that QEMU understands |
//! | [`exec`], [`task`], [`timer`] | futures on the thread that waits for them |
//! | `lane`, `ring`, `pool` | calls that may wait: io_uring where it is allowed, else a few threads |
//! | `workers` | a thread per core, for engines that compute |
//! | [`signal`], [`terminal`], [`usage`] | what a tool wants to know of its surroundings |
//! | [`sandbox`] | a process that looks at a hostile file and can do nothing else |
//! | [`raw_terminal`], [`ready`] | a console for a guest; waiting for several descriptors |
//!
//! Invariants: nothing is started before it is needed; `io::Error` and errno stay here and become
//! [`cowbell_block::Error`] once; every `unsafe` block is a few lines long and says why it holds.
//!
//! A file is a node like any other. [`block_on`] drives requests on the calling thread; the example `files` opens by name
//! instead, with a registry.
//!
//! ```
//! use std::sync::Arc;
//! use cowbell_block::{Access, Buf, Node, Request};
//! use cowbell_host::{FileNode, FileOptions, block_on};
//!
//! # let path = std::env::temp_dir().join(format!("cowbell-doc-{}", std::process::id()));
//! std::fs::write(&path, b"content").expect("written");
//! let options = FileOptions { access: Access::ReadWrite, ..FileOptions::default() };
//! let file = FileNode::open(&path, &options).expect("there");
//! block_on(async {
//!     file.submit(Request::write(3, Buf::copy_of(b"TENT"))).finish().await.into_bufs()?;
//!     let read = file.submit(Request::read(0, Buf::zeroed(7))).finish().await.into_bufs()?;
//!     assert_eq!(&read.to_contiguous()[..], b"conTENT");
//!     file.close().await
//! })
//! .expect("possible");
//! # std::fs::remove_file(&path).expect("removed");
//! ```

mod driver;
pub mod error;
pub mod exec;
pub mod file;
mod handle;
mod ioctl;
mod keyring;
mod lane;
pub mod lock;
mod outside;
mod path;
mod pool;
pub mod raw_terminal;
pub mod ready;
mod ring;
pub mod sandbox;
pub mod signal;
mod slot;
pub mod task;
pub mod terminal;
pub mod timer;
pub mod usage;
mod workers;

pub use driver::{FileDriver, add_drivers};
pub use exec::block_on;
pub use file::{Create, FileKind, FileNode, FileOptions, Locking, WriteRefused};
pub use keyring::keyring_key;
pub use lane::Lane;
pub use lock::{Needs, Permissions};
pub use outside::outside;
pub use path::{name_of, path_of};
pub use raw_terminal::RawTerminal;
pub use ring::is_offered as ring_is_offered;
pub use task::spawn_local;
pub use timer::{sleep, time};
pub use workers::workers;
