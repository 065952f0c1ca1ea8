//! Key slots: what the options mean, and that a cut at any write leaves enough passphrases that open the volume.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cowbell_block::mem::MemNode;
use cowbell_block::outside::Outside;
use cowbell_block::{
    BoxFuture, Child, Force, ImageInfo, Node, Op, Operation, Request, Result, Secret, Secrets,
};
use cowbell_luks::amend::{AmendOptions, Change, Slots};
use cowbell_luks::{Algorithms, Area, Header, MasterKey, Placement, create};
use parking_lot::Mutex;

/// Chance that repeats, and a clock that makes every derivation take the fewest iterations there are.
#[derive(Default)]
struct Repeats(AtomicU64);

impl Outside for Repeats {
    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        for byte in bytes {
            let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            *byte = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes()[0];
        }
        Ok(())
    }

    fn thread_time(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(1 << 40, Ordering::Relaxed) >> 8)
    }
}

/// What happens to the file, in order.
#[derive(Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Flush,
}

/// A memory node that notes what is written.
struct Noting {
    mem: MemNode,
    steps: Mutex<Vec<Step>>,
}

impl Node for Noting {
    fn submit(&self, request: Request) -> Op {
        match request.op {
            Operation::Write => {
                let content = request.bufs.to_contiguous()[..].to_vec();
                self.steps.lock().push(Step::Write(request.offset, content));
            }
            Operation::Flush => self.steps.lock().push(Step::Flush),
            _ => {}
        }
        self.mem.submit(request)
    }
    fn driver(&self) -> &'static str {
        "noting"
    }
    fn len(&self) -> u64 {
        self.mem.len()
    }
    fn filename(&self) -> String {
        self.mem.filename()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.mem.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        self.mem.close()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = Box::pin(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory meets no wait"),
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

struct Fixture {
    node: Arc<Noting>,
    area: Area,
    header: Header,
    key: MasterKey,
    outside: Repeats,
}

impl Fixture {
    /// A volume that `first` opens. Its key is short, so that a test takes no longer than it must.
    fn new() -> Self {
        let outside = Repeats::default();
        let names =
            Algorithms { cipher_alg: Some("aes-128"), cipher_mode: Some("cbc"), ..Algorithms::default() };
        let options = names.resolve(Some(0), Default::default()).expect("known names");
        let volume = now(create(&options, &secret("first"), &outside, None)).expect("made");
        let mut content = vec![0; options.header_area_bytes() as usize + 4096];
        content[..volume.area.len()].copy_from_slice(&volume.area);
        let node = Arc::new(Noting { mem: MemNode::with_content(&content), steps: Mutex::default() });
        let area = Area { child: Child::new(node.clone()), offset: 0 };
        Self { node, area, header: volume.header, key: volume.key, outside }
    }

    fn amend(&mut self, change: Change, force: Force) -> Result<()> {
        let mut slots = Slots {
            area: &self.area,
            header: &mut self.header,
            key: &self.key,
            outside: &self.outside,
            spawner: None,
            barrier: &|| {
                let child = self.area.child.clone();
                Box::pin(async move { child.flush().await })
            },
        };
        now(slots.amend(&change, force))
    }

    fn good(&mut self, change: Change) {
        self.amend(change, Force::No).expect("allowed");
        assert_eq!(read_header(&self.area), self.header);
    }

    fn refused(&mut self, change: Change, expect: &str) {
        let before = self.node.mem.content();
        assert_eq!(self.amend(change, Force::No).expect_err(expect).to_string(), expect);
        assert!(self.node.mem.content() == before, "nothing is written");
    }
}

fn read_header(area: &Area) -> Header {
    now(area.read_header(Placement::Attached(area.child.len()))).expect("a sound header")
}

fn add(text: &str, slot: Option<usize>) -> Change {
    Change::Add { passphrase: secret(text), slot, iter_time_ms: Some(0) }
}

/// Which of the passphrases open the volume.
fn usable(area: &Area, texts: &[&str]) -> usize {
    let header = read_header(area);
    let opens = |text: &&&str| now(area.unlock(&header, &secret(text), None)).is_ok();
    texts.iter().filter(opens).count()
}

/// Every state that a cut may leave: all before a flush is there, and any one of the writes after it, whole or half,
/// with or without those that came before it.
fn cuts(before: &[u8], steps: &[Step]) -> Vec<Vec<u8>> {
    let (mut durable, mut pending) = (before.to_vec(), Vec::new());
    let mut states = vec![durable.clone()];
    let apply = |content: &mut Vec<u8>, at: u64, bytes: &[u8]| {
        content[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    for step in steps {
        match step {
            Step::Flush => {
                pending.iter().for_each(|(at, bytes): &(u64, Vec<u8>)| apply(&mut durable, *at, bytes));
                pending.clear();
                states.push(durable.clone());
            }
            Step::Write(at, bytes) => {
                // A sector is written whole or not at all, and which of two comes first nobody knows.
                let first_end = ((at + 1).next_multiple_of(512) - at).min(bytes.len() as u64) as usize;
                let middle = (bytes.len() / 2).next_multiple_of(512).min(bytes.len());
                for part in [0..first_end, first_end..bytes.len(), 0..middle, 0..bytes.len()] {
                    let from = at + part.start as u64;
                    let mut alone = durable.clone();
                    apply(&mut alone, from, &bytes[part.clone()]);
                    let mut all = durable.clone();
                    pending.iter().for_each(|(at, bytes)| apply(&mut all, *at, bytes));
                    apply(&mut all, from, &bytes[part]);
                    states.extend([alone, all]);
                }
                pending.push((*at, bytes.clone()));
            }
        }
    }
    assert!(pending.is_empty(), "a change ends with a flush");
    states
}

#[test]
fn a_cut_never_leaves_fewer_passphrases_than_before_or_after() {
    const TEXTS: [&str; 3] = ["first", "second", "third"];
    let changes = [
        (add("second", None), Force::No),
        (add("third", Some(6)), Force::No),
        (Change::RemoveSlot { slot: 6, passphrase: Some(secret("third")) }, Force::No),
        (add("third", Some(0)), Force::Yes),
        (Change::RemovePassphrase(secret("second")), Force::No),
    ];
    let mut fixture = Fixture::new();
    for (change, force) in changes {
        let before = fixture.node.mem.content();
        let had = usable(&fixture.area, &TEXTS);
        fixture.node.steps.lock().clear();
        fixture.amend(change.clone(), force).expect("allowed");
        let least = had.min(usable(&fixture.area, &TEXTS));
        let steps = fixture.node.steps.lock().clone();
        for (number, state) in cuts(&before, &steps).iter().enumerate() {
            let area = Area { child: Child::new(Arc::new(MemNode::with_content(state))), offset: 0 };
            assert!(usable(&area, &TEXTS) >= least, "{change:?}, cut {number}");
        }
    }
    assert_eq!(usable(&fixture.area, &TEXTS), 1);
}

#[test]
fn slots_are_added_and_removed() {
    let mut volume = Fixture::new();
    volume.good(add("second", None));
    volume.refused(add("x", Some(1)), "Refusing to overwrite active keyslot 1 - please erase it first");
    volume.good(add("second", Some(5)));
    assert_eq!(volume.header.active_slots(), 3);
    let of = |slot, text: Option<&str>| Change::RemoveSlot { slot, passphrase: text.map(secret) };
    volume.refused(of(3, None), "Given keyslot 3 is already erased (inactive) ");
    volume.refused(
        of(1, Some("first")),
        "Given keyslot 1 doesn't contain the given old password for erase operation",
    );
    volume.refused(
        Change::RemovePassphrase(secret("x")),
        "No keyslots match given (old) password for erase operation",
    );
    volume.good(Change::RemovePassphrase(secret("second")));
    assert_eq!(volume.header.active_slots(), 1);
    volume.refused(
        of(0, None),
        "Attempt to erase the only active keyslot 0 which will erase all the data in the image irreversibly - \
         refusing operation",
    );
    volume.refused(
        Change::RemovePassphrase(secret("first")),
        "All the active keyslots match the (old) password that was given and erasing them will erase all the data \
         in the image irreversibly - refusing operation",
    );
    for _ in 0..7 {
        volume.good(add("second", None));
    }
    volume.refused(add("x", None), "Can't add a keyslot - all keyslots are in use");
    volume.amend(add("third", Some(7)), Force::Yes).expect("by force");
    assert_eq!(usable(&volume.area, &["first", "second", "third"]), 3);
}

#[test]
fn removed_material_is_gone() {
    let mut volume = Fixture::new();
    volume.good(add("second", None));
    let (at, len) = (volume.header.key_offset(1) as usize, volume.header.key_material_bytes());
    let before = volume.node.mem.content()[at..at + len].to_vec();
    volume.good(Change::RemoveSlot { slot: 1, passphrase: None });
    let after = volume.node.mem.content()[at..at + len].to_vec();
    let same = before.iter().zip(&after).filter(|(a, b)| a == b).count();
    assert!(same < len / 64, "{same} of {len} bytes are as they were");
}

#[test]
fn options_that_contradict_each_other() {
    let mut secrets = Secrets::default();
    secrets.add("n", secret("new")).expect("first of its name");
    let word = |text: &str| Some(text.to_owned());
    let fails = |options: AmendOptions, expect: &str| {
        assert_eq!(options.resolve(&secrets).expect_err(expect).to_string(), expect);
    };
    let usual = AmendOptions { state: word("active"), new_secret: word("n"), ..AmendOptions::default() };
    let erase = AmendOptions { state: word("inactive"), ..AmendOptions::default() };
    fails(AmendOptions::default(), "Parameter 'state' is missing");
    fails(AmendOptions { state: word("x"), ..usual.clone() }, "Parameter 'state' does not accept value 'x'");
    fails(
        AmendOptions { new_secret: None, ..usual.clone() },
        "'new-secret' is required to activate a keyslot",
    );
    fails(AmendOptions { new_secret: word("zz"), ..usual.clone() }, "No secret with id 'zz'");
    fails(
        AmendOptions { old_secret: word("n"), ..usual.clone() },
        "'old-secret' must not be given when activating keyslots",
    );
    fails(
        AmendOptions { keyslot: Some(8), ..usual.clone() },
        "Invalid keyslot 8 specified, must be between 0 and 7",
    );
    fails(
        AmendOptions { new_secret: word("n"), ..erase.clone() },
        "'new-secret' must not be given when erasing keyslots",
    );
    fails(
        AmendOptions { iter_time_ms: Some(1), ..erase.clone() },
        "'iter-time' must not be given when erasing keyslots",
    );
    fails(
        erase,
        "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
    );
    assert!(usual.resolve(&secrets).is_ok());
}

#[test]
fn a_wrong_passphrase_is_told() {
    let volume = Fixture::new();
    let error = now(volume.area.unlock(&volume.header, &secret("x"), None)).err().expect("wrong");
    assert_eq!(error.to_string(), "Invalid password, cannot unlock any keyslot");
}
