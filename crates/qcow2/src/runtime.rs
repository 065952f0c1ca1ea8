//! The options that an image is opened with, as users write them.

use std::sync::Arc;

use cowbell_block::context::OpenContext;
use cowbell_block::node::CannotChange;
use cowbell_block::options::{
    BoolOpt, ChildRef, DiscardMode, NumberOpt, OptionError, OptionTree, SizeOpt, from_tree, parse,
};
use cowbell_block::range_lock::LockMode;
use cowbell_block::registry::Role;
use cowbell_block::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::DRIVER;
use crate::crypto::Unlock;
use crate::engine::{Discards, Engine};
use crate::geometry::Geometry;
use crate::header::Header;
use crate::meta::OverlapChecks;

/// Clusters of refcount blocks that are cached at least (the reference's minimum).
const REFCOUNT_CLUSTERS_MIN: u64 = 4;
/// Longest interval, in seconds.
const CLEAN_INTERVAL_MAX: u64 = u32::MAX as u64;
/// Seconds after which unused slices are forgotten (the reference's default).
const CLEAN_INTERVAL: u64 = 600;

/// The driver's own options; the common ones are in the context.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RuntimeOptions {
    #[serde(default)]
    pub file: ChildRef,
    #[serde(default)]
    pub backing: ChildRef,
    #[serde(default)]
    pub data_file: ChildRef,
    encrypt: Option<EncryptOptions>,
    pub lazy_refcounts: Option<BoolOpt>,
    pass_discard_request: Option<BoolOpt>,
    pass_discard_snapshot: Option<BoolOpt>,
    pass_discard_other: Option<BoolOpt>,
    discard_no_unref: Option<BoolOpt>,
    overlap_check: Option<Value>,
    cache_size: Option<SizeOpt>,
    l2_cache_size: Option<SizeOpt>,
    l2_cache_entry_size: Option<SizeOpt>,
    refcount_cache_size: Option<SizeOpt>,
    cache_clean_interval: Option<NumberOpt>,
}

/// How the image is encrypted, and the key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct EncryptOptions {
    format: Option<String>,
    key_secret: Option<String>,
}

/// A template with exceptions, below the name of the option that holds them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OverlapOption {
    overlap_check: OverlapDetails,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OverlapDetails {
    template: Option<String>,
    main_header: Option<BoolOpt>,
    active_l1: Option<BoolOpt>,
    active_l2: Option<BoolOpt>,
    refcount_table: Option<BoolOpt>,
    refcount_block: Option<BoolOpt>,
    snapshot_table: Option<BoolOpt>,
    inactive_l1: Option<BoolOpt>,
    inactive_l2: Option<BoolOpt>,
    bitmap_directory: Option<BoolOpt>,
}

/// Options that contradict each other or the image.
#[derive(Debug, thiserror::Error)]
enum RuntimeError {
    #[error("discard-no-unref is only supported since qcow2 version 3")]
    NoUnrefVersion,
    #[error("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")]
    LazyVersion,
    #[error(
        "Unsupported value '{0}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, cached, all"
    )]
    Template(String),
    #[error("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")]
    AllSizes,
    #[error("{0} may not exceed cache-size")]
    Exceeds(&'static str),
    #[error("L2 cache entry size must be a power of two between 512 and the cluster size ({0})")]
    EntrySize(u64),
    #[error("Cache clean interval too big")]
    CleanInterval,
}

impl From<RuntimeError> for Error {
    fn from(e: RuntimeError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// How much memory tables may take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheSizes {
    pub l2: u64,
    pub refcounts: u64,
    pub slice: u32,
}

/// The options that can be changed while the image is open. The sizes of caches are not among them: they are made for
/// their sizes.
const CHANGEABLE: [&str; 6] = [
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "discard-no-unref",
    "overlap-check",
];

/// Changes options of an open image; nothing runs meanwhile.
///
/// # Errors
/// An option that stays, or a bad value; nothing has changed then. Or the file's, when refcounts have to be settled.
pub(crate) async fn reconfigure(engine: &Arc<Engine>, tree: OptionTree) -> Result<()> {
    let names: Vec<String> = tree.keys().cloned().collect();
    let known: Vec<&str> = tree.keys().map(|key| key.split('.').next().unwrap_or_default()).collect();
    let stays = known.iter().position(|key| !CHANGEABLE.contains(key)).map(|at| names[at].clone());
    let options: RuntimeOptions = from_tree(tree).map_err(|e| match e {
        OptionError::Unknown { key } => Error::from(CannotChange(key)),
        other => other.into(),
    })?;
    if let Some(key) = stays {
        return Err(CannotChange(key).into());
    }
    let (version, old) = {
        let state = engine.state.lock();
        (state.header.version, state.discards)
    };
    let discards = options.discards_over(old, version)?;
    let checks = options.overlap_check.is_some().then(|| options.overlap_checks()).transpose()?;
    let lazy = options.lazy_refcounts.map(|on| on.0);
    if lazy == Some(true) && version < 3 {
        return Err(RuntimeError::LazyVersion.into());
    }
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    if (lazy == Some(false) || checks.is_some()) && engine.check_writable().is_ok() {
        // What was postponed is done now; and where metadata lies is looked up anew in the file.
        engine.settle_refcounts().await?;
    }
    let mut state = engine.state.lock();
    state.discards = discards;
    state.lazy = lazy.unwrap_or(state.lazy);
    if let Some(checks) = checks {
        state.overlap_checks = checks;
        state.meta = None;
    }
    Ok(())
}

impl RuntimeOptions {
    /// What opens an encrypted image. The key is not looked up where nothing needs it.
    ///
    /// # Errors
    /// No secret has the name, or it is no text.
    pub fn unlock(&mut self, header: &Header, cx: &OpenContext) -> Result<Unlock> {
        let Some(EncryptOptions { format, key_secret }) = self.encrypt.take() else {
            return Ok(Unlock::default());
        };
        let passphrase = match &key_secret {
            Some(id) if !cx.no_io && header.crypt_method != 0 => Some(cx.secrets.passphrase(id)?),
            _ => None,
        };
        Ok(Unlock { format, passphrase, key_secret, outside: cx.outside.clone() })
    }

    /// What becomes of storage that is no longer needed.
    pub fn discards(&self, mode: DiscardMode, version: u32) -> Result<Discards> {
        let mut discards = Discards::default();
        discards.set(Discards::REQUEST, mode == DiscardMode::Unmap);
        self.discards_over(discards, version)
    }

    /// The same, where what is not given stays.
    fn discards_over(&self, mut discards: Discards, version: u32) -> Result<Discards> {
        for (given, what) in [
            (self.pass_discard_request, Discards::REQUEST),
            (self.pass_discard_snapshot, Discards::SNAPSHOT),
            (self.pass_discard_other, Discards::OTHER),
            (self.discard_no_unref, Discards::NO_UNREF),
        ] {
            discards.set(what, given.map_or(discards.contains(what), |on| on.0));
        }
        if discards.contains(Discards::NO_UNREF) && version < 3 {
            return Err(RuntimeError::NoUnrefVersion.into());
        }
        Ok(discards)
    }

    /// Which metadata is protected.
    pub fn overlap_checks(&self) -> Result<OverlapChecks> {
        match &self.overlap_check {
            None => Ok(OverlapChecks::default()),
            Some(Value::Object(details)) => {
                let mut tree = OptionTree::new();
                tree.insert("overlap-check".to_owned(), Value::Object(details.clone()));
                parse::<OverlapOption>(DRIVER, Role::Format, tree)?.overlap_check.resolve()
            }
            Some(Value::String(name)) => template(name),
            // No value of another kind is the name of a template: it is refused as it was written.
            Some(other) => template(&other.to_string()),
        }
    }

    /// The sizes of the caches of an image with this geometry and this length of its disk.
    pub fn cache_sizes(&self, geometry: &Geometry, disk: u64, defaults: CacheSizes) -> Result<CacheSizes> {
        let size = |given: Option<SizeOpt>| given.map(|s| s.0);
        let (all, l2, refcounts) =
            (size(self.cache_size), size(self.l2_cache_size), size(self.refcount_cache_size));
        let slice = size(self.l2_cache_entry_size).unwrap_or(u64::from(defaults.slice));
        let cluster = geometry.cluster_size();
        if self.l2_cache_entry_size.is_some()
            && !(slice.is_power_of_two() && (512..=cluster).contains(&slice))
        {
            return Err(RuntimeError::EntrySize(cluster).into());
        }
        let at_least = REFCOUNT_CLUSTERS_MIN * cluster;
        let (l2, refcounts) = match (all, l2, refcounts) {
            (Some(_), Some(_), Some(_)) => return Err(RuntimeError::AllSizes.into()),
            (Some(all), Some(l2), None) => {
                (l2, all.checked_sub(l2).ok_or(RuntimeError::Exceeds("l2-cache-size"))?)
            }
            (Some(all), None, Some(refcounts)) => {
                (all.checked_sub(refcounts).ok_or(RuntimeError::Exceeds("refcount-cache-size"))?, refcounts)
            }
            // Tables of the whole disk first; what is left counts references.
            (Some(all), None, None) => {
                let needed = geometry.clusters_for(disk).saturating_mul(geometry.l2_entry_bytes());
                let needed = needed.next_multiple_of(cluster);
                match all.checked_sub(needed).filter(|rest| *rest >= at_least) {
                    Some(rest) => (needed, rest),
                    None => (all - all.min(at_least), all.min(at_least)),
                }
            }
            (None, l2, refcounts) => (l2.unwrap_or(defaults.l2), refcounts.unwrap_or(defaults.refcounts)),
        };
        Ok(CacheSizes { l2, refcounts, slice: slice.min(cluster) as u32 })
    }

    /// Seconds after which unused slices are forgotten; `None` for never.
    pub fn clean_interval(&self) -> Result<Option<u64>> {
        let seconds = self.cache_clean_interval.map_or(CLEAN_INTERVAL, |s| s.0);
        match seconds {
            0 => Ok(None),
            1..=CLEAN_INTERVAL_MAX => Ok(Some(seconds)),
            _ => Err(RuntimeError::CleanInterval.into()),
        }
    }
}

fn template(name: &str) -> Result<OverlapChecks> {
    match name {
        "none" => Ok(OverlapChecks::empty()),
        "constant" => Ok(OverlapChecks::CONSTANT),
        "cached" => Ok(OverlapChecks::CACHED),
        "all" => Ok(OverlapChecks::all()),
        other => Err(RuntimeError::Template(other.to_owned()).into()),
    }
}

impl OverlapDetails {
    fn resolve(&self) -> Result<OverlapChecks> {
        let mut checks = self.template.as_deref().map_or(Ok(OverlapChecks::default()), template)?;
        for (given, what) in [
            (self.main_header, OverlapChecks::MAIN_HEADER),
            (self.active_l1, OverlapChecks::ACTIVE_L1),
            (self.active_l2, OverlapChecks::ACTIVE_L2),
            (self.refcount_table, OverlapChecks::REFCOUNT_TABLE),
            (self.refcount_block, OverlapChecks::REFCOUNT_BLOCK),
            (self.snapshot_table, OverlapChecks::SNAPSHOT_TABLE),
            (self.inactive_l1, OverlapChecks::INACTIVE_L1),
            (self.inactive_l2, OverlapChecks::INACTIVE_L2),
            (self.bitmap_directory, OverlapChecks::BITMAP_DIRECTORY),
        ] {
            checks.set(what, given.map_or(checks.contains(what), |on| on.0));
        }
        Ok(checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> RuntimeOptions {
        let Value::Object(tree) = value else { panic!("options are objects") };
        cowbell_block::options::parse("qcow2", Role::Format, tree).expect("well-formed")
    }

    #[test]
    fn cache_sizes_are_shared_out_like_the_reference_does() {
        let geometry = Geometry::new(16, 4, 4096);
        let defaults = CacheSizes { l2: 32 << 20, refcounts: 4 << 20, slice: 4096 };
        let sizes = |value| parse(value).cache_sizes(&geometry, 8 << 30, defaults);
        let both = |value| sizes(value).map(|s| (s.l2, s.refcounts)).map_err(|e| e.to_string());
        assert_eq!(both(json!({})), Ok((32 << 20, 4 << 20)));
        assert_eq!(
            both(json!({"cache-size": "4M"})),
            Ok((1 << 20, 3 << 20)),
            "all tables of 8 GiB are 1 MiB"
        );
        assert_eq!(both(json!({"cache-size": "1M"})), Ok(((1 << 20) - (256 << 10), 256 << 10)));
        assert_eq!(both(json!({"cache-size": "1M", "l2-cache-size": "64k"})), Ok((64 << 10, 960 << 10)));
        let refused = |value| both(value).expect_err("contradictory");
        assert_eq!(
            refused(json!({"cache-size": "1M", "l2-cache-size": "2M"})),
            "l2-cache-size may not exceed cache-size"
        );
        assert_eq!(
            refused(json!({"cache-size": 1, "l2-cache-size": 1, "refcount-cache-size": 1})),
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
        );
        for bytes in [513, 256, 128 << 10] {
            assert_eq!(
                refused(json!({"l2-cache-entry-size": bytes})),
                "L2 cache entry size must be a power of two between 512 and the cluster size (65536)"
            );
        }
    }

    #[test]
    fn overlap_checks_have_templates_with_exceptions() {
        let checks = |value| parse(json!({ "overlap-check": value })).overlap_checks();
        assert_eq!(checks(json!("none")).ok(), Some(OverlapChecks::empty()));
        assert_eq!(checks(json!("all")).ok(), Some(OverlapChecks::all()));
        let only = checks(json!({"template": "none", "active-l2": "on"})).ok();
        assert_eq!(only, Some(OverlapChecks::ACTIVE_L2));
        let but = checks(json!({"main-header": false})).ok();
        assert_eq!(but, Some(OverlapChecks::CACHED - OverlapChecks::MAIN_HEADER));
        assert!(checks(json!("some")).is_err());
    }

    #[test]
    fn the_clean_interval_is_bounded() {
        let interval = |value| parse(json!({ "cache-clean-interval": value })).clean_interval();
        assert_eq!(interval(json!(0)).ok(), Some(None));
        assert_eq!(interval(json!(5)).ok(), Some(Some(5)));
        assert_eq!(
            interval(json!(99_999_999_999u64)).expect_err("too long").to_string(),
            "Cache clean interval too big"
        );
    }
}
