//! Dirty bitmaps against a model, over cluster sizes and granularities; the independent checker has the last word.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{Access, Buf, Error, Fix, Flags, Node, Preallocation, Request};
use cowbell_qcow2::{BitmapError, BitmapInfo, CreateOptions, OpenOptions, Qcow2, Recording};
use support::{Rng, assert_clean, create, open, read, run, submit, write, zero};

const SECTOR: u64 = 512;

/// What one bitmap should say.
#[derive(Clone)]
struct Model {
    granularity: u64,
    recording: bool,
    bits: Vec<bool>,
}

impl Model {
    fn new(granularity: u64, size: u64) -> Self {
        Self { granularity, recording: true, bits: vec![false; size.div_ceil(granularity) as usize] }
    }

    fn mark(&mut self, offset: u64, len: u64) {
        let end = (offset + len).div_ceil(self.granularity).min(self.bits.len() as u64);
        self.bits[(offset / self.granularity) as usize..end as usize].fill(true);
    }

    /// The dirty bytes as runs that do not touch.
    fn runs(&self, size: u64) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (i, _) in self.bits.iter().enumerate().filter(|(_, bit)| **bit) {
            let (start, end) = (i as u64 * self.granularity, ((i as u64 + 1) * self.granularity).min(size));
            match runs.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => runs.push((start, end)),
            }
        }
        runs
    }
}

fn stored_runs(node: &Qcow2, name: &str) -> Vec<(u64, u64)> {
    run(async {
        let mut reader = node.read_bitmap(name).await.expect("readable");
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut from = 0;
        while let Some(dirty) = reader.next_dirty(from).await.expect("readable") {
            assert!(dirty.start >= from && dirty.end > dirty.start, "progress");
            from = dirty.end;
            match runs.last_mut() {
                Some(last) if last.1 == dirty.start => last.1 = dirty.end,
                _ => runs.push((dirty.start, dirty.end)),
            }
        }
        runs
    })
}

fn check(node: &Qcow2, models: &BTreeMap<String, Model>) {
    let size = node.len();
    let listed = run(node.bitmaps()).expect("listed");
    assert_eq!(listed.len(), models.len());
    for BitmapInfo { name, granularity, recording, inconsistent } in listed {
        let model = &models[&name];
        assert_eq!((granularity, recording, inconsistent), (model.granularity, model.recording, false));
        assert_eq!(stored_runs(node, &name), model.runs(size), "{name}");
    }
}

fn image(cluster_bits: u32, size: u64) -> Arc<MemNode> {
    create(&CreateOptions { size, cluster_bits, ..Default::default() })
}

fn reopen(node: Arc<Qcow2>, file: &Arc<MemNode>) -> Arc<Qcow2> {
    run(node.close()).expect("closed");
    assert_clean(file);
    open(file, None, OpenOptions::default())
}

fn change_disk(node: &Qcow2, models: &mut BTreeMap<String, Model>, rng: &mut Rng) {
    let size = node.len();
    let offset = rng.below(size / SECTOR) * SECTOR;
    let magnitude = 9 + rng.below(12);
    let len = (1 + rng.below(1 << magnitude)).min(size - offset);
    match rng.below(4) {
        0 => zero(node, offset, len, Flags::MAY_UNMAP),
        1 => submit(node, Request::discard(offset, len)),
        _ => write(node, offset, &vec![7; len as usize]),
    }
    models.values_mut().filter(|m| m.recording).for_each(|m| m.mark(offset, len));
}

fn change_bitmaps(node: &Qcow2, models: &mut BTreeMap<String, Model>, rng: &mut Rng) {
    let names: Vec<String> = models.keys().cloned().collect();
    let pick = |rng: &mut Rng| names[rng.below(names.len() as u64) as usize].clone();
    match rng.below(6) {
        0 if names.len() < 5 => {
            let (name, granularity) = (format!("bitmap{}", rng.below(1000)), 512 << rng.below(9));
            let added = run(node.add_bitmap(&name, granularity));
            assert_eq!(added.is_ok(), !models.contains_key(&name));
            models.entry(name).or_insert_with(|| Model::new(granularity, node.len()));
        }
        1 if names.len() > 1 => {
            let name = pick(rng);
            run(node.remove_bitmap(&name)).expect("removed");
            models.remove(&name);
        }
        2 if !names.is_empty() => {
            let name = pick(rng);
            run(node.clear_bitmap(&name)).expect("cleared");
            models.get_mut(&name).expect("known").bits.fill(false);
        }
        3 if !names.is_empty() => {
            let (name, recording) = (pick(rng), [Recording::On, Recording::Off][rng.below(2) as usize]);
            run(node.set_recording(&name, recording)).expect("set");
            models.get_mut(&name).expect("known").recording = recording == Recording::On;
        }
        _ if !names.is_empty() => {
            let (name, from) = (pick(rng), pick(rng));
            run(async {
                let mut source = node.read_bitmap(&from).await?;
                node.merge_bitmap(&name, &mut source).await
            })
            .expect("merged");
            let runs = models[&from].runs(node.len());
            let model = models.get_mut(&name).expect("known");
            runs.iter().for_each(|(start, end)| model.mark(*start, end - start));
        }
        _ => {}
    }
}

fn random_changes(cluster_bits: u32, size: u64, seed: u64) {
    let mut rng = Rng(seed * 2 + 1);
    let file = image(cluster_bits, size);
    let mut node = open(&file, None, OpenOptions::default());
    let mut models = BTreeMap::new();
    for round in 0..60 {
        for _ in 0..rng.below(6) {
            change_disk(&node, &mut models, &mut rng);
        }
        change_bitmaps(&node, &mut models, &mut rng);
        if round % 7 == 0 {
            check(&node, &models);
        }
        if round % 11 == 0 {
            node = reopen(node, &file);
            check(&node, &models);
            let report = run(node.check(Fix::None)).expect("checkable");
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
        }
    }
}

#[test]
fn any_changes_are_recorded_in_any_geometry() {
    for seed in 0..6 {
        random_changes(9, 3 << 20, seed);
        random_changes(12, (40 << 20) + 512, seed + 100);
        random_changes(16, 100 << 20, seed + 200);
    }
}

#[test]
fn resizing_keeps_what_is_left() {
    for (cluster_bits, seed) in [(9, 1), (9, 2), (12, 3), (16, 4)] {
        let mut rng = Rng(seed);
        let mut size = 4 << 20;
        let file = image(cluster_bits, size);
        let mut node = open(&file, None, OpenOptions::default());
        let mut models = BTreeMap::new();
        for (name, granularity) in [("fine", 512), ("middle", 4096), ("coarse", 1 << 20)] {
            run(node.add_bitmap(name, granularity)).expect("added");
            models.insert(name.to_owned(), Model::new(granularity, size));
        }
        for step in 0..12 {
            change_disk(&node, &mut models, &mut rng);
            if step == 3 {
                write(&*node, 0, &vec![1; size as usize]);
                models.values_mut().for_each(|m| m.mark(0, size));
            }
            size += SECTOR * rng.below(1 << 14);
            submit(&*node, Request::truncate(size, Preallocation::Off));
            for model in models.values_mut() {
                model.bits.resize(size.div_ceil(model.granularity) as usize, false);
            }
            check(&node, &models);
            node = reopen(node, &file);
            check(&node, &models);
        }
    }
}

fn error_of(result: Result<(), Error>) -> BitmapError {
    let error = result.expect_err("refused");
    error.cause().and_then(|cause| cause.downcast_ref::<BitmapError>()).expect("a bitmap's error").clone()
}

#[test]
fn an_interrupted_run_leaves_what_recorded_inconsistent_and_nothing_else() {
    let file = image(16, 10 << 20);
    let node = open(&file, None, OpenOptions::default());
    for name in ["a", "b", "still"] {
        run(node.add_bitmap(name, 65536)).expect("added");
    }
    write(&*node, 0, &[1; 512]);
    run(node.set_recording("still", Recording::Off)).expect("set");
    let before = Arc::new(MemNode::with_content(&file.content()));
    write(&*node, 1 << 20, &[1; 512]);
    let after = Arc::new(MemNode::with_content(&file.content()));

    let node = open(&before, None, OpenOptions::default());
    assert!(run(node.bitmaps()).unwrap().iter().all(|b| !b.inconsistent), "nothing changed since");
    assert_eq!(stored_runs(&node, "a"), [(0, 65536)]);

    let node = open(&after, None, OpenOptions::default());
    let states: Vec<bool> = run(node.bitmaps()).unwrap().iter().map(|b| b.inconsistent).collect();
    assert_eq!(states, [true, true, false]);
    assert_eq!(stored_runs(&node, "still"), [(0, 65536)]);
    let inconsistent = BitmapError::Inconsistent("a".into());
    assert_eq!(error_of(run(node.clear_bitmap("a"))), inconsistent);
    assert_eq!(error_of(run(node.set_recording("a", Recording::On))), inconsistent);
    assert_eq!(error_of(run(node.read_bitmap("a")).map(drop)), inconsistent);
    assert_eq!(error_of(run(node.add_bitmap("a", 512))), BitmapError::Exists("a".into()));
    let grown = run(node.submit(Request::truncate(11 << 20, Preallocation::Off)).finish());
    assert_eq!(error_of(grown.result.map(drop)), inconsistent);
    write(&*node, 0, &[1; 512]);
    // What was freed and not yet counted down when the run was cut.
    let report = run(node.check(Fix::Leaks)).expect("repaired");
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    let node = reopen(node, &after);
    run(node.remove_bitmap("a")).expect("removed");
    run(node.remove_bitmap("b")).expect("removed");
    let node = reopen(node, &after);
    assert_eq!(run(node.bitmaps()).unwrap().len(), 1);
}

#[test]
fn reading_leaves_the_bitmaps_alone() {
    let file = image(16, 10 << 20);
    let node = open(&file, None, OpenOptions::default());
    run(node.add_bitmap("a", 65536)).expect("added");
    let node = reopen(node, &file);
    let before = file.content();
    read(&*node, 0, 4096);
    run(node.close()).expect("closed");
    assert!(file.content() == before, "nothing to store, nothing written");
}

#[test]
fn the_header_has_room_wherever_its_parts_lie() {
    // Names of all lengths move the end of the extensions over the sectors' borders.
    for (cluster_bits, lens) in [(9, 1..300), (10, 1..440), (12, 1..1023)] {
        for len in lens.step_by(41) {
            let backing = Arc::new(MemNode::with_content(&[5; 4096]));
            let name = "n".repeat(len);
            let options = CreateOptions {
                size: 1 << 20,
                cluster_bits,
                backing_file: Some(name.clone()),
                backing_format: Some("raw".into()),
                ..Default::default()
            };
            let file = create(&options);
            let node = open(&file, Some(backing.clone()), OpenOptions::default());
            for bitmap in ["a", "b"] {
                run(node.add_bitmap(bitmap, 4096)).expect("added");
            }
            write(&*node, 0, &[1; 512]);
            run(node.remove_bitmap("a")).expect("removed");
            run(node.close()).expect("closed");
            assert_clean(&file);
            let node = open(&file, Some(backing), OpenOptions::default());
            let info = run(node.info()).expect("told");
            assert_eq!(info.backing_filename.as_deref(), Some(name.as_str()));
            assert_eq!(info.backing_format.as_deref(), Some("raw"));
            assert_eq!(stored_runs(&node, "b"), [(0, 4096)]);
            run(node.remove_bitmap("b")).expect("removed");
            run(node.add_bitmap("c", 4096)).expect("added again");
            run(node.close()).expect("closed");
            assert_clean(&file);
        }
    }
}

#[test]
fn a_clear_autoclear_bit_makes_bitmaps_void() {
    let file = image(16, 10 << 20);
    let node = open(&file, None, OpenOptions::default());
    run(node.add_bitmap("a", 65536)).expect("added");
    run(node.close()).expect("closed");
    let mut content = file.content();
    content[88..96].fill(0);
    let file = Arc::new(MemNode::with_content(&content));
    let node = open(&file, None, OpenOptions::default());
    assert_eq!(run(node.bitmaps()).unwrap(), []);
    assert_eq!(run(node.check(Fix::All)).expect("repaired").leaks_fixed, 2);
    run(node.add_bitmap("b", 4096)).expect("added");
    let node = reopen(node, &file);
    assert_eq!(run(node.bitmaps()).unwrap().len(), 1);
}

#[test]
fn memory_stays_bounded_however_much_changes() {
    let file = image(16, 64 << 30);
    let node = open(&file, None, OpenOptions::default());
    run(node.add_bitmap("fine", 512)).expect("added");
    let mut expect = Vec::new();
    for i in 0..4000u64 {
        let at = i * (16 << 20);
        submit(&*node, Request::discard(at, 512));
        expect.push((at, at + 512));
    }
    assert_eq!(stored_runs(&node, "fine"), expect, "stored in between, and nothing lost");
    submit(&*node, Request::discard(0, 64 << 30));
    let node = reopen(node, &file);
    assert_eq!(stored_runs(&node, "fine"), [(0, 64 << 30)]);
    assert!(file.content().len() < 64 << 20, "a bitmap with all bits set takes no room");
}

#[test]
fn what_the_image_cannot_hold_is_refused() {
    let refused = |options: CreateOptions, name: &str, granularity: u64| {
        let node = open(&create(&options), None, OpenOptions::default());
        error_of(run(node.add_bitmap(name, granularity))).to_string()
    };
    let sized = |size| CreateOptions { size, ..Default::default() };
    assert!(
        refused(CreateOptions { version: 2, ..sized(1 << 20) }, "a", 512)
            .ends_with("Cannot store dirty bitmaps in qcow2 v2 files")
    );
    assert!(refused(sized(16 << 40), "a", 512).ends_with("Use larger granularity"));
    assert!(refused(sized(1 << 20), &"x".repeat(1024), 512).ends_with("(1023 characters)"));
    assert!(refused(sized(1 << 20), "", 512).ends_with("Bitmap name cannot be empty"));
    assert!(refused(sized(1 << 20), "a", 256).ends_with("at least 512"));
    assert!(refused(sized(1 << 20), "a", 4 << 30).ends_with("at least 512"));
    assert!(refused(sized(0), "a", 512).ends_with("of an empty disk"));
}

#[test]
fn a_failed_merge_changes_nothing() {
    let (small, large) = (image(16, 1 << 20), image(16, 2 << 20));
    let (small, large) =
        (open(&small, None, OpenOptions::default()), open(&large, None, OpenOptions::default()));
    for node in [&small, &large] {
        run(node.add_bitmap("a", 65536)).expect("added");
        write(&**node, 0, &[1; 512]);
    }
    let merged = run(async {
        let mut source = large.read_bitmap("a").await?;
        small.merge_bitmap("a", &mut source).await
    });
    assert_eq!(error_of(merged), BitmapError::Sizes { destination: 1 << 20, from: 2 << 20 });
    assert_eq!(stored_runs(&small, "a"), [(0, 65536)]);
}

#[test]
fn read_only_images_show_their_bitmaps() {
    let file = image(16, 1 << 20);
    let node = open(&file, None, OpenOptions::default());
    run(node.add_bitmap("a", 65536)).expect("added");
    write(&*node, 65536, &[1; 512]);
    run(node.reopen(Access::ReadOnly)).expect("stored");
    assert_clean(&file);
    assert_eq!(stored_runs(&node, "a"), [(65536, 131_072)]);
    assert!(run(node.add_bitmap("b", 512)).is_err());
    run(node.reopen(Access::ReadWrite)).expect("writable");
    run(node.submit(Request::write(0, Buf::zeroed(512))).finish()).into_bufs().expect("written");
    run(node.close()).expect("closed");
    assert_clean(&file);
}

/// The fuzzer's finding: the independent checker and the reference refuse what a check called sound.
#[test]
fn a_check_finds_reserved_bits_in_a_table() {
    let file = create(&CreateOptions { size: 1 << 20, ..CreateOptions::default() });
    let node = open(&file, None, OpenOptions::default());
    run(node.add_bitmap("a", 65536)).expect("added");
    write(&*node, 0, &[1; 512]);
    run(node.close()).expect("closed");
    let content = file.content();
    let number =
        |at: usize, len: usize| content[at..at + len].iter().fold(0, |n, b| n << 8 | usize::from(*b));
    // The extension of bitmaps, the directory that it names, the table that the first entry names.
    let extension = (104..4096).step_by(8).find(|at| number(*at, 4) == 0x2385_2875).expect("an extension");
    let table = number(number(extension + 24, 8), 8);
    for (entry, corruptions) in [(number(table, 8), 0), (2, 1), (number(table, 8) | 1, 1), (1, 0)] {
        let mut content = content.clone();
        content[table..table + 8].copy_from_slice(&(entry as u64).to_be_bytes());
        let file = Arc::new(MemNode::with_content(&content));
        let opened =
            Qcow2::open(file, None, OpenOptions { access: Access::ReadOnly, ..OpenOptions::default() });
        let report = run(run(opened).expect("opens").check(Fix::None)).expect("checkable");
        assert_eq!(report.corruptions, corruptions, "entry {entry:#x}");
    }
}
