//! A format so simple that it is plainly right, and three ways to break it: what proves the oracles before they
//! judge the engine.
//!
//! Sector 0 holds 64 big-endian file sector numbers, one per guest cluster of two sectors, 0 for none. Data is
//! appended to the file and its entry written when the data is durable.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use cowbell_block::node::{ImageInfo, Node};
use cowbell_block::range_lock::{LockMode, RangeLock};
use cowbell_block::request::{Completion, Extent, ExtentFlags, Op, Operation, Request};
use cowbell_block::{BoxFuture, Buf, Child, ErrorKind, Result};
use parking_lot::Mutex;

use crate::config::Config;
use crate::image::Built;
use crate::judge::Failure;
use crate::lab::{Effort, Found, Lab};
use crate::pool::{Pool, SECTOR, ZERO};
use crate::rng::{Concern, Rng};
use crate::scenario::{GuestOp, Scenario, Schedule};
use crate::subject::{Files, ImageBytes, Inspection, Source, Subject};
use crate::timeline::Image;
use crate::{exec::Granularity, shrink};

/// What is wrong with the toy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// The entry is written without waiting for the data.
    NoBarrier,
    /// Two writers may fill one fresh cluster side by side.
    NoLock,
    /// A flush does not reach the file.
    NoFlush,
}

pub struct Toy(pub Bug);

impl Subject for Toy {
    fn build(&self, config: &Config, _: &mut Pool) -> Built {
        let image = Image { sectors: vec![ZERO], len: 512, data_len: 0 };
        Built { image, guest: vec![ZERO; config.sectors as usize], ..Built::default() }
    }

    fn open(&self, files: Files, config: &Config) -> BoxFuture<Result<Arc<dyn Node>>> {
        let (bug, len) = (self.0, config.sectors * 512);
        Box::pin(async move {
            let file = Child::new(files.image);
            let table = file.read(0, SECTOR).await?;
            let map = table.as_chunks::<8>().0.iter().map(|e| u64::from_be_bytes(*e)).collect();
            let next = Mutex::new(file.len().div_ceil(512));
            let state = State { file, map: Mutex::new(map), next, lock: RangeLock::new(), bug, len };
            Ok(Arc::new(ToyNode(Arc::new(state))) as Arc<dyn Node>)
        })
    }

    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection {
        let mut table = [0; SECTOR];
        image.read(0, &mut table);
        let mut seen = HashMap::new();
        let mut inspection = Inspection::default();
        for (index, entry) in table.as_chunks::<8>().0.iter().enumerate() {
            let at = u64::from_be_bytes(*entry);
            if at != 0 && seen.insert(at, index).is_some() {
                inspection.corrupt = Some(Failure::new("O3", format!("sector {at} has two owners")));
            }
            for half in 0..2 {
                inspection.guest.push(match at {
                    0 => Source::Fixed(ZERO),
                    at => Source::File(at as u32 + half),
                });
            }
        }
        inspection.guest.truncate(config.sectors as usize);
        inspection
    }
}

struct State {
    file: Child,
    map: Mutex<Vec<u64>>,
    next: Mutex<u64>,
    lock: RangeLock,
    bug: Bug,
    len: u64,
}

struct ToyNode(Arc<State>);

impl State {
    async fn write(&self, first: u64, data: Buf) -> Result<()> {
        for (sector, bytes) in (first..).zip(data.as_chunks::<SECTOR>().0) {
            let cluster = sector / 2;
            let _guard = match self.bug {
                Bug::NoLock => None,
                _ => Some(self.lock.lock(cluster..cluster + 1, LockMode::Exclusive).await),
            };
            let at = self.map.lock()[cluster as usize];
            if at != 0 {
                self.file.write((at + sector % 2) * 512, Buf::copy_of(bytes)).await?;
                continue;
            }
            let at = {
                let mut next = self.next.lock();
                *next += 2;
                *next - 2
            };
            let mut whole = Buf::zeroed(1024);
            whole[(sector % 2) as usize * 512..][..512].copy_from_slice(bytes);
            self.file.write(at * 512, whole).await?;
            if self.bug != Bug::NoBarrier {
                self.file.flush().await?;
            }
            self.map.lock()[cluster as usize] = at;
            self.file.write(cluster * 8, Buf::copy_of(&at.to_be_bytes())).await?;
        }
        Ok(())
    }

    async fn read(&self, first: u64, out: &mut Buf) -> Result<()> {
        for (sector, bytes) in (first..).zip(out.as_chunks_mut::<SECTOR>().0) {
            let at = self.map.lock()[(sector / 2) as usize];
            match at {
                0 => bytes.fill(0),
                at => bytes.copy_from_slice(&self.file.read((at + sector % 2) * 512, SECTOR).await?),
            }
        }
        Ok(())
    }

    async fn run(self: Arc<Self>, request: Request) -> Completion {
        let first = request.offset / 512;
        let result = match request.op {
            Operation::Read => {
                let mut buf = Buf::zeroed(request.len as usize);
                let result = self.read(first, &mut buf).await;
                return match result {
                    Ok(()) => Completion::done(buf.into()),
                    Err(error) => Completion::failed(request.bufs, error),
                };
            }
            Operation::Write => self.write(first, request.bufs.to_contiguous()).await,
            Operation::WriteZeroes => self.write(first, Buf::zeroed(request.len as usize)).await,
            Operation::Discard => Ok(()),
            Operation::Flush if self.bug == Bug::NoFlush => Ok(()),
            Operation::Flush => self.file.flush().await,
            Operation::Status => {
                let flags = ExtentFlags::DATA;
                return Completion::extent(Extent { len: request.len, flags, map: None });
            }
            _ => Err(ErrorKind::Unsupported.into()),
        };
        let fua = request.flags.contains(cowbell_block::Flags::FUA);
        let result = match result {
            Ok(()) if fua => self.file.flush().await,
            other => other,
        };
        match result {
            Ok(()) => Completion::done(request.bufs),
            Err(error) => Completion::failed(request.bufs, error),
        }
    }
}

impl Node for ToyNode {
    fn submit(&self, request: Request) -> Op {
        Op::wait(self.0.clone().run(request))
    }
    fn driver(&self) -> &'static str {
        "toy"
    }
    fn len(&self) -> u64 {
        self.0.len
    }
    fn filename(&self) -> String {
        "toy".into()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        Box::pin(std::future::ready(Ok(ImageInfo::default())))
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        let state = self.0.clone();
        Box::pin(async move { state.file.flush().await })
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn scenario(seed: u64) -> Scenario {
    let mut rng = Rng::stream(seed, Concern::Workload);
    let config = Config { sectors: 8, ..Config::default() };
    let ops = (0..rng.between(2, 8))
        .map(|_| {
            let from = rng.below(8);
            let at = from..rng.between(from + 1, 8.min(from + 3));
            match rng.below(8) {
                0..4 => GuestOp::Write { at, fua: rng.one_in(4) },
                4 => GuestOp::Zero { at, unmap: false, fua: false },
                5 => GuestOp::Flush,
                6 => GuestOp::Reopen,
                _ => GuestOp::Read { at },
            }
        })
        .collect();
    let schedule = if seed.is_multiple_of(2) { Schedule::Uniform } else { Schedule::Pct(3) };
    Scenario { seed, config, lanes: 3, ops, granularity: Granularity::Full, schedule, ..Scenario::default() }
}

fn first_failure(bug: Bug, seeds: u64) -> Option<(u64, Found)> {
    let mut lab = Lab::new(Rc::new(Toy(bug)));
    (0..seeds).find_map(|seed| lab.judge(&scenario(seed), Effort::QUICK).err().map(|found| (seed, found)))
}

#[test]
fn the_right_toy_passes() {
    assert_eq!(first_failure(Bug::None, 400), None);
}

#[test]
fn a_missing_barrier_is_found_by_the_data_oracle() {
    let (_, found) = first_failure(Bug::NoBarrier, 400).expect("found");
    // Seen in the image that the cut left, or in what recovery makes of it.
    assert!(found.cut.is_some(), "{found:?}");
}

#[test]
fn a_missing_lock_is_found_by_the_readers() {
    let (_, found) = first_failure(Bug::NoLock, 400).expect("found");
    assert!(found.failure.what.contains("allowed: operation"), "{found:?}");
}

#[test]
fn a_flush_that_does_nothing_is_found() {
    let (_, found) = first_failure(Bug::NoFlush, 400).expect("found");
    assert_eq!(found.failure.oracle, "O2", "{found:?}");
}

#[test]
fn the_same_seed_has_the_same_trace() {
    let hash = |seed| Lab::new(Rc::new(Toy(Bug::None))).run(&scenario(seed)).ok().map(|run| run.trace_hash);
    for seed in 0..20 {
        assert_eq!(hash(seed), hash(seed));
    }
    assert_ne!(hash(1), hash(2));
}

#[test]
fn failures_shrink_and_replay() {
    for bug in [Bug::NoBarrier, Bug::NoLock, Bug::NoFlush] {
        let (seed, found) = first_failure(bug, 400).expect("found");
        let mut lab = Lab::new(Rc::new(Toy(bug)));
        let small = shrink::shrink(&mut lab, &scenario(seed), &found, Effort::QUICK);
        assert!(small.ops.len() <= 3, "{bug:?}\n{}", small.to_text());
        let again = Scenario::parse(&small.to_text()).expect("its own text");
        let replayed = Lab::new(Rc::new(Toy(bug))).judge(&again, Effort::QUICK).err().expect("fails again");
        assert_eq!(shrink::kind(replayed.failure.oracle), shrink::kind(found.failure.oracle));
        assert!(Lab::new(Rc::new(Toy(Bug::None))).judge(&again, Effort::QUICK).is_ok());
    }
}
