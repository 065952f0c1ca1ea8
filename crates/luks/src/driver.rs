//! The driver as the registry knows it: options in, nodes and volumes out.

use std::sync::Arc;

use cowbell_block::context::{ChildKind, OpenContext};
use cowbell_block::create::{CreateArgs, CreateOption, OptionKind};
use cowbell_block::modes::Modes;
use cowbell_block::options::{ChildRef, OptionTree, parse};
use cowbell_block::outside;
use cowbell_block::registry::{Driver, MeasureSource, Measurement, Role, Score};
use cowbell_block::secrets::Secret;
use cowbell_block::{BoxFuture, Buf, Child, ErrorKind, Node, Preallocation, Request, Result};
use serde::Deserialize;

use crate::create::{Algorithms, HeaderPlace, create};
use crate::node::{Luks, OpenOptions};
use crate::{DRIVER, Header, KeyMissing};

/// Opens and makes LUKS1 volumes for a registry.
pub struct LuksDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuntimeOptions {
    #[serde(default)]
    file: ChildRef,
    #[serde(default)]
    header: ChildRef,
    key_secret: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct CreationOptions {
    size: u64,
    key_secret: Option<String>,
    cipher_alg: Option<String>,
    cipher_mode: Option<String>,
    ivgen_alg: Option<String>,
    ivgen_hash_alg: Option<String>,
    hash_alg: Option<String>,
    iter_time: Option<u64>,
    detached_header: bool,
    preallocation: Option<String>,
}

/// In the order in which `create` shows them; `help` sorts.
const CREATE_OPTIONS: &[CreateOption] = &[
    CreateOption::new("size", OptionKind::Size, "Virtual disk size"),
    CreateOption::new("key-secret", OptionKind::Str, "ID of the secret that provides the keyslot passphrase"),
    CreateOption::new("cipher-alg", OptionKind::Str, "Name of encryption cipher algorithm"),
    CreateOption::new("cipher-mode", OptionKind::Str, "Name of encryption cipher mode"),
    CreateOption::new("ivgen-alg", OptionKind::Str, "Name of IV generator algorithm"),
    CreateOption::new("ivgen-hash-alg", OptionKind::Str, "Name of IV generator hash algorithm"),
    CreateOption::new("hash-alg", OptionKind::Str, "Name of encryption hash algorithm"),
    CreateOption::new("iter-time", OptionKind::Num, "Time to spend in PBKDF in milliseconds"),
    CreateOption::new("detached-header", OptionKind::Bool, "Create a detached LUKS header"),
];

const AMEND_OPTIONS: &[CreateOption] = &[
    CreateOption::new("state", OptionKind::Str, "Select new state of affected keyslots (active/inactive)"),
    CreateOption::new("keyslot", OptionKind::Num, "Select a single keyslot to modify explicitly"),
    CreateOption::new("old-secret", OptionKind::Str, "Select all keyslots that match this password"),
    CreateOption::new(
        "new-secret",
        OptionKind::Str,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    CreateOption::new("iter-time", OptionKind::Num, "Time to spend in PBKDF in milliseconds"),
];

/// How much of the payload gets its storage at once. It is in the protocol's options as well, which would reserve the
/// file before it has its length.
const PREALLOCATION: CreateOption = CreateOption::new(
    "preallocation",
    OptionKind::Str,
    "Preallocation mode (allowed values: off, falloc, full)",
);

impl Driver for LuksDriver {
    fn name(&self) -> &'static str {
        DRIVER
    }

    fn role(&self) -> Role {
        Role::Format
    }

    fn probe(&self, head: &[u8]) -> Score {
        if Header::probe(head) { 100 } else { 0 }
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: RuntimeOptions = parse(DRIVER, Role::Format, options)?;
            let file = cx.require_child("file", options.file, ChildKind::Storage).await?;
            let header = cx.open_child("header", options.header, ChildKind::Storage).await?;
            let passphrase = match (&options.key_secret, cx.no_io) {
                (_, true) => None,
                (Some(id), false) => Some(cx.secrets.passphrase(id)?),
                (None, false) => return Err(KeyMissing("key-secret").into()),
            };
            let open = OpenOptions {
                access: cx.access,
                modes: Modes::of(&cx),
                passphrase,
                key_secret: options.key_secret,
                spawner: cx.spawn.clone(),
                outside: cx.outside.clone(),
            };
            Ok(Arc::new(Luks::open(file, header, open).await?) as Arc<dyn Node>)
        })
    }

    fn create_options(&self) -> &'static [CreateOption] {
        CREATE_OPTIONS
    }

    fn measure(
        &self,
        options: OptionTree,
        source: MeasureSource,
        cx: OpenContext,
    ) -> BoxFuture<Result<Measurement>> {
        Box::pin(async move {
            let mut args = CreateArgs { options, ..CreateArgs::default() };
            let given = args.take_typed::<CreationOptions>(&known_options())?;
            let size = match source {
                MeasureSource::Size(len) => len,
                MeasureSource::Image(node) => node.len(),
            };
            // Its place depends on what is asked for, not on the passphrase, which has to be there all the same.
            let options = given.algorithms().resolve(given.iter_time, given.place())?;
            given.passphrase(&cx)?;
            let bytes = options.header_area_bytes().checked_add(size).ok_or(ErrorKind::TooLarge)?;
            Ok(Measurement { required: bytes, fully_allocated: bytes, bitmaps: None })
        })
    }

    fn amend_options(&self) -> &'static [CreateOption] {
        AMEND_OPTIONS
    }

    fn create(&self, mut args: CreateArgs, cx: OpenContext) -> BoxFuture<Result<()>> {
        Box::pin(async move {
            let given = args.take_typed::<CreationOptions>(&known_options())?;
            let place = given.place();
            let options = given.algorithms().resolve(given.iter_time, place)?;
            let preallocation = preallocation(given.preallocation.as_deref())?;
            let payload = if place == HeaderPlace::Detached { 0 } else { given.size };
            let len = options
                .header_area_bytes()
                .checked_add(payload)
                .and_then(|n| n.checked_next_multiple_of(512));
            let len = len.filter(|len| *len <= i64::MAX as u64).ok_or(ErrorKind::TooLarge)?;
            let passphrase = given.passphrase(&cx)?;
            let outside = outside::required(&cx.outside)?;
            let volume = create(&options, &passphrase, &*outside, cx.spawn.as_ref()).await?;
            let filename = args.filename.clone();
            let storage = cx.create_storage(args).await?;
            let file = cx.open_storage(&filename).await?;
            let result = write(&Child::new(file.clone()), volume.area, len, preallocation).await;
            result.and(file.close().await)?;
            storage.keep();
            Ok(())
        })
    }
}

/// The options of the format with the one that it takes from the protocol.
fn known_options() -> Vec<CreateOption> {
    let mut known = CREATE_OPTIONS.to_vec();
    known.push(PREALLOCATION);
    known
}

impl CreationOptions {
    fn place(&self) -> HeaderPlace {
        if self.detached_header { HeaderPlace::Detached } else { HeaderPlace::WithPayload }
    }

    fn algorithms(&self) -> Algorithms<'_> {
        Algorithms {
            cipher_alg: self.cipher_alg.as_deref(),
            cipher_mode: self.cipher_mode.as_deref(),
            ivgen_alg: self.ivgen_alg.as_deref(),
            ivgen_hash_alg: self.ivgen_hash_alg.as_deref(),
            hash_alg: self.hash_alg.as_deref(),
        }
    }

    fn passphrase(&self, cx: &OpenContext) -> Result<Secret> {
        let id = self.key_secret.as_deref().ok_or(KeyMissing("key-secret"))?;
        Ok(cx.secrets.passphrase(id)?)
    }
}

fn preallocation(word: Option<&str>) -> Result<Preallocation> {
    let word = word.unwrap_or("off");
    Preallocation::from_name(word).ok_or_else(|| {
        crate::create::AlgorithmError::Value { option: "preallocation", value: word.to_owned() }.into()
    })
}

/// Gives the file its length, then its header last: an interrupted creation leaves no volume.
async fn write(file: &Child, mut area: Buf, len: u64, preallocation: Preallocation) -> Result<()> {
    let preallocation = match preallocation {
        // There are no tables.
        Preallocation::Metadata => Preallocation::Off,
        other => other,
    };
    file.submit(Request::truncate(len, preallocation)).finish().await.result?;
    let header = area.split_to(HEADER_WRITE_BYTES);
    file.write(HEADER_WRITE_BYTES as u64, area).await?;
    file.flush().await?;
    file.write(0, header).await
}

/// What is written last: all that comes before the key material.
const HEADER_WRITE_BYTES: usize = 4096;
