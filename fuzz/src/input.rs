//! Inputs to try: from the corpus, made by the engine, damaged in named fields; and a few images that are hostile by
//! construction, with limits of their own.

use std::path::Path;
use std::time::Duration;

use cowbell_block::{Access, Buf, Child, MemNode, Node, Request};
use cowbell_difftest::layout::{Layout, put};
use cowbell_difftest::rng::Rng;
use cowbell_qcow2::{CompressionType, CreateOptions, OpenOptions, Qcow2};

use crate::mutate::is_mapped;
use crate::scene::Scene;
use crate::target::{Run, TARGETS, Target, drive};

/// Largest image of the corpus and of those made here.
const BYTES_MAX: usize = 1 << 20;
/// Subdirectories of the corpus: whole images, and scenes. What targets of bytes read lies under their names.
const IMAGES: &str = "images";
const SCENES: &str = "scenes";

/// An input.
pub struct Input {
    /// What it is, for a person.
    pub name: String,
    /// What a target that needs random numbers starts from.
    pub seed: u64,
    /// What it holds.
    pub content: Content,
    /// Limits beside those for all.
    pub limits: Limits,
}

/// What an input holds.
#[derive(Clone)]
pub enum Content {
    /// An image, and perhaps what is done with it.
    File(Scene),
    /// What a parser reads.
    Bytes {
        /// The name of the target.
        of: &'static str,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// Limits of a hostile image on what looks at it only.
#[derive(Clone, Copy, Default)]
pub struct Limits {
    /// Longest `check`.
    check: Option<Duration>,
    /// Most heap of `check`.
    check_heap: Option<u64>,
}

/// Longest `open`, generous against a busy machine: the target is 10 ms.
const OPEN_MAX: Duration = Duration::from_millis(100);
/// Most heap of opening and `info`.
const OPEN_HEAP_MAX: u64 = 8 << 20;

impl Limits {
    /// The limit that an execution broke.
    pub fn broken(&self, target: &str, took: Duration, heap: u64) -> Option<String> {
        match target {
            "open" if took > OPEN_MAX => Some(format!("open is slow [{took:?}]")),
            "open" if heap > OPEN_HEAP_MAX => Some(format!("open takes memory [{} KiB]", heap >> 10)),
            "check" if self.check.is_some_and(|max| took > max) => Some(format!("check is slow [{took:?}]")),
            "check" if self.check_heap.is_some_and(|max| heap > max) => {
                Some(format!("check takes memory [{} KiB]", heap >> 10))
            }
            _ => None,
        }
    }
}

impl Input {
    /// An image read from a file.
    pub fn of_image(name: String, bytes: &[u8]) -> Self {
        Self::new(name, Content::File(Scene::of_file(&[], bytes)))
    }

    /// What a file of the corpus, or a fuzzer, has for a target.
    pub fn of_corpus(target: &Target, name: String, bytes: &[u8]) -> Self {
        Self::new(
            name,
            match target.run {
                Run::Image(_) => Content::File(Scene::decode(bytes)),
                Run::Bytes(_) => Content::Bytes { of: target.name, bytes: bytes.to_vec() },
            },
        )
    }

    fn new(name: String, content: Content) -> Self {
        Self { name, seed: 0, content, limits: Limits::default() }
    }

    /// Its bytes, as they would lie in the corpus.
    pub fn bytes(&self) -> Vec<u8> {
        match &self.content {
            Content::File(scene) => scene.encode(),
            Content::Bytes { bytes, .. } => bytes.clone(),
        }
    }

    /// Most I/Os of one execution: what the limits allow for an image of that many clusters, at the smallest
    /// cluster size, plus what the targets ask for themselves.
    pub fn ios_max(&self) -> u64 {
        let bytes: usize = match &self.content {
            Content::File(scene) if scene.len <= BYTES_MAX as u64 => scene.len as usize,
            Content::File(scene) => scene.pieces.iter().map(|(_, bytes)| bytes.len()).sum(),
            Content::Bytes { .. } => 0,
        };
        10_000 + 8 * (bytes as u64).div_ceil(512)
    }
}

/// What to start from.
#[derive(Default)]
pub struct Corpus {
    images: Vec<(String, Vec<u8>)>,
    /// Everything, as it is.
    all: Vec<(String, Content)>,
}

impl Corpus {
    /// The corpus in a directory, in the order of its names.
    ///
    /// # Errors
    /// The file or directory that cannot be read.
    pub fn load(directory: &Path) -> Result<Self, String> {
        let images = files(&directory.join(IMAGES))?;
        let scene =
            |(name, bytes): &(String, Vec<u8>)| (name.clone(), Content::File(Scene::of_file(&[], bytes)));
        let mut all: Vec<_> = images.iter().map(scene).collect();
        for (name, bytes) in files(&directory.join(SCENES))? {
            all.push((name, Content::File(Scene::decode(&bytes))));
        }
        for target in TARGETS.iter().filter(|target| matches!(target.run, Run::Bytes(_))) {
            for (name, bytes) in files(&directory.join(target.name))? {
                all.push((name, Content::Bytes { of: target.name, bytes }));
            }
        }
        Ok(Self { images, all })
    }

    /// Everything as it is.
    pub fn inputs(&self) -> impl Iterator<Item = Input> + '_ {
        self.all.iter().map(|(name, content)| Input::new(name.clone(), content.clone()))
    }

    /// Something of the corpus, or a new image, with one to four fields damaged.
    pub fn damaged(&self, seed: u64, rng: &mut Rng) -> Input {
        match self.all.get(rng.below(2 * self.all.len() as u64) as usize) {
            Some((name, Content::Bytes { of, bytes })) => {
                let (mut name, mut bytes) = (format!("seed {seed}, {name}"), bytes.clone());
                for _ in 0..1 + rng.below(4) {
                    name += &damage_bytes(&mut bytes, rng);
                }
                Input { seed, ..Input::new(name, Content::Bytes { of, bytes }) }
            }
            _ => self.damaged_image(seed, rng),
        }
    }

    fn damaged_image(&self, seed: u64, rng: &mut Rng) -> Input {
        let fresh = self.images.is_empty() || rng.percent(40);
        let (from, mut bytes) = if fresh {
            ("made".to_owned(), made(rng))
        } else {
            self.images[rng.below(self.images.len() as u64) as usize].clone()
        };
        let mut name = format!("seed {seed}, {from}");
        let original = bytes.clone();
        let layout = is_mapped(&original).then(|| Layout::of(&original));
        for _ in 0..1 + rng.below(4) {
            let field = layout.as_ref().and_then(|layout| layout.damage(rng));
            if let Some((field, value, how)) = field
                && rng.percent(85)
            {
                put(&mut bytes, &field, value);
                name += &format!(", {} {how} {value:#x}", field.name);
            } else {
                name += &damage_bytes(&mut bytes, rng);
            }
        }
        if rng.percent(5) {
            bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
            name += &format!(", cut to {}", bytes.len());
        }
        Input { seed, ..Input::of_image(name, &bytes) }
    }
}

/// Where the corpus of a target lies, for a fuzzer: the name of the subdirectory.
pub fn corpus_of(target: &Target) -> &'static str {
    match target.run {
        Run::Image(_) => SCENES,
        Run::Bytes(_) => target.name,
    }
}

/// Gives one byte another value; says which.
fn damage_bytes(bytes: &mut [u8], rng: &mut Rng) -> String {
    let at = rng.below(bytes.len() as u64) as usize;
    let value = rng.below(256) as u8;
    match bytes.get_mut(at) {
        Some(byte) => *byte = value,
        None => return String::new(),
    }
    format!(", byte {at:#x} {value:#x}")
}

/// The files of a directory that are not too large.
fn files(directory: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
    let entries = std::fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut files = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if bytes.len() <= BYTES_MAX {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, bytes));
        }
    }
    files.sort();
    Ok(files)
}

/// An image made and written by the engine.
fn made(rng: &mut Rng) -> Vec<u8> {
    let version = if rng.percent(25) { 2 } else { 3 };
    let cluster_bits = rng.pick(&[9, 9, 10, 12, 14]);
    let size = (1 + rng.below(100)) << cluster_bits;
    let options = CreateOptions {
        version,
        size,
        cluster_bits,
        refcount_order: if version == 2 { 4 } else { rng.pick(&[0, 1, 2, 3, 4, 5, 6]) },
        lazy_refcounts: version == 3 && rng.percent(20),
        compression: if version == 3 && rng.percent(20) {
            CompressionType::Zstd
        } else {
            CompressionType::Zlib
        },
        ..CreateOptions::default()
    };
    let memory = MemNode::new(0);
    let file: std::sync::Arc<dyn Node> = std::sync::Arc::new(memory.clone());
    let made = drive_future(cowbell_qcow2::create(&Child::new(file.clone()), None, &options));
    let open = OpenOptions { access: Access::ReadWrite, ..OpenOptions::default() };
    let opened = made.and_then(|()| drive_future(Qcow2::open(file, None, open)));
    if let Ok(image) = opened {
        for _ in 0..rng.below(12) {
            let offset = rng.below(size / 512) * 512;
            let len = (1 + rng.below(4 << (cluster_bits - 9))) * 512;
            let len = len.min(size - offset);
            let request = match rng.below(5) {
                0 => Request::write_zeroes(offset, len),
                1 => Request::discard(offset, len),
                _ => Request::write(offset, Buf::copy_of(&vec![1 + rng.below(255) as u8; len as usize])),
            };
            drive(image.submit(request));
        }
        let _ = drive_future(image.close());
    }
    memory.content()
}

fn drive_future<T>(future: impl Future<Output = T>) -> T {
    crate::target::block_until(future).expect("memory answers at once")
}

/// A header of version 3.
fn header(cluster_bits: u32, size: u64, l1: (u64, u32), reftable: (u64, u32)) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(b"QFI\xfb");
    bytes.extend(3u32.to_be_bytes());
    bytes.extend([0; 12]);
    bytes.extend(cluster_bits.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(l1.1.to_be_bytes());
    bytes.extend(l1.0.to_be_bytes());
    bytes.extend(reftable.0.to_be_bytes());
    bytes.extend(reftable.1.to_be_bytes());
    bytes.extend([0; 12]);
    bytes.extend([0; 24]);
    bytes.extend(4u32.to_be_bytes());
    bytes.extend(104u32.to_be_bytes());
    bytes
}

/// Images that are hostile by construction, with the limits of `reliability.md` T11 and T12. Time limits are ten
/// times what is promised: the machine that runs this is shared.
pub fn hostile() -> Vec<Input> {
    let cluster = 64u64 << 10;
    // 65,536 L1 entries name one L2 table; 0.8 MB.
    let l1_entries = 65_536u32;
    let table = 10 * cluster;
    let entry = (table | (1 << 63)).to_be_bytes();
    let one_table = vec![
        (0, header(16, u64::from(l1_entries) << 29, (2 * cluster, l1_entries), (cluster, 1))),
        (2 * cluster, entry.repeat(l1_entries as usize)),
        (table, ((11 * cluster) | (1 << 63)).to_be_bytes().repeat(8192)),
    ];
    // The largest L1 that is allowed, all zeroes, in a file of holes.
    let large_l1 =
        vec![(0, header(9, 4 << 37, (1 << 20, 4 << 20), (512, 1))), (512, (1024u64).to_be_bytes().to_vec())];
    // 512 GiB with clusters of 512 bytes, of which nothing is there.
    let holes = vec![
        (0, header(9, 1 << 30, (1024, 32_768), (1 << 20, 16_384))),
        (1 << 20, (2u64 << 20).to_be_bytes().to_vec()),
    ];
    let snapshots = {
        let mut head = header(16, 1 << 30, (2 * cluster, 2), (cluster, 1));
        head[60..64].copy_from_slice(&65_536u32.to_be_bytes());
        head[64..72].copy_from_slice(&(3 * cluster).to_be_bytes());
        vec![(0, head)]
    };
    let check = |ms, mib: u64| Limits { check: Some(Duration::from_millis(ms)), check_heap: Some(mib << 20) };
    let sparse = |name: &str, len, pieces, limits| Input {
        name: name.into(),
        seed: 0,
        content: Content::File(Scene { choices: Vec::new(), len, pieces }),
        limits,
    };
    vec![
        sparse("one L2 table named 65,536 times", 12 * cluster, one_table, check(1000, 64)),
        sparse("an L1 of 32 MiB", 1 << 30, large_l1, check(5000, 64)),
        sparse("512 GiB of holes", 512 << 30, holes, check(5000, 64)),
        sparse("65,536 snapshots of nothing", 1 << 30, snapshots, check(5000, 64)),
    ]
}
