//! Key slots added, changed and removed.
//!
//! A cut at any write leaves at least as many usable passphrases as the fewer of before and after:
//!
//! - *Adding*: key material and the slot's fields, still inactive; flush; the slot becomes active; flush.
//! - *Removing*: the slot becomes inactive; flush; its fields and key material are overwritten; flush.
//! - *Replacing* (by force only): the new passphrase is added in a free slot first, and removed from there last.
//!   When all slots are in use there is none, and the passphrase being replaced is gone for the time in between; the
//!   others are not touched.

use cowbell_block::outside::Outside;
use cowbell_block::spawn::Spawner;
use cowbell_block::{BoxFuture, Buf, Error, ErrorKind, Force, Result, Secret, mutant};

use serde::Deserialize;

use crate::create::{ITER_TIME_MS, fill_slot};
use crate::header::{Header, SALT_BYTES, SLOTS};
use crate::keys::{Area, MasterKey};

/// A change of key slots.
#[derive(Clone, Debug)]
pub enum Change {
    /// Puts a passphrase into a slot.
    Add {
        /// The passphrase.
        passphrase: Secret,
        /// The slot; any free one if not said.
        slot: Option<usize>,
        /// Time that the derivation of the key shall take.
        iter_time_ms: Option<u64>,
    },
    /// Removes the passphrase of this slot, if it is the one given.
    RemoveSlot {
        /// The slot.
        slot: usize,
        /// The passphrase that must be there.
        passphrase: Option<Secret>,
    },
    /// Removes this passphrase from every slot.
    RemovePassphrase(Secret),
}

/// The options of `amend`, as they are given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[expect(missing_docs, reason = "named as the options are")]
pub struct AmendOptions {
    pub state: Option<String>,
    pub new_secret: Option<String>,
    pub old_secret: Option<String>,
    pub keyslot: Option<u64>,
    #[serde(rename = "iter-time")]
    pub iter_time_ms: Option<u64>,
}

/// A change that is not understood or refused, in the reference's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it all")]
pub enum AmendError {
    #[error("Parameter 'state' is missing")]
    NoState,
    #[error("Parameter 'state' does not accept value '{0}'")]
    State(String),
    #[error("'new-secret' is required to activate a keyslot")]
    NoNewSecret,
    #[error("'old-secret' must not be given when activating keyslots")]
    OldSecretForAdding,
    #[error("'new-secret' must not be given when erasing keyslots")]
    NewSecretForErasing,
    #[error("'iter-time' must not be given when erasing keyslots")]
    IterTimeForErasing,
    #[error(
        "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given"
    )]
    EraseWhat,
    #[error("Invalid keyslot {0} specified, must be between 0 and 7")]
    Slot(u32),
    #[error("Refusing to overwrite active keyslot {0} - please erase it first")]
    SlotInUse(usize),
    #[error("Can't add a keyslot - all keyslots are in use")]
    AllInUse,
    // The reference's sentence ends with a blank.
    #[error("Given keyslot {0} is already erased (inactive) ")]
    AlreadyErased(usize),
    #[error("Given keyslot {0} doesn't contain the given old password for erase operation")]
    OtherPassphrase(usize),
    #[error("No keyslots match given (old) password for erase operation")]
    NoMatch,
    #[error(
        "Attempt to erase the only active keyslot {0} which will erase all the data in the image irreversibly - refusing operation"
    )]
    LastSlot(usize),
    #[error(
        "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation"
    )]
    LastPassphrase,
}

impl From<AmendError> for Error {
    fn from(e: AmendError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

impl AmendOptions {
    /// What the options ask for.
    ///
    /// # Errors
    /// They contradict each other, or name secrets that are not there.
    pub fn resolve(&self, secrets: &cowbell_block::Secrets) -> Result<Change> {
        let passphrase = |id: &String| secrets.passphrase(id);
        let slot = match self.keyslot {
            None => None,
            Some(slot) if slot < SLOTS as u64 => Some(slot as usize),
            // As the reference shows numbers that do not fit its own type.
            Some(slot) => return Err(AmendError::Slot(slot as u32).into()),
        };
        match self.state.as_deref() {
            None => Err(AmendError::NoState.into()),
            Some("active") => {
                let Some(new) = &self.new_secret else { return Err(AmendError::NoNewSecret.into()) };
                if self.old_secret.is_some() {
                    return Err(AmendError::OldSecretForAdding.into());
                }
                Ok(Change::Add { passphrase: passphrase(new)?, slot, iter_time_ms: self.iter_time_ms })
            }
            Some("inactive") => {
                if self.new_secret.is_some() {
                    return Err(AmendError::NewSecretForErasing.into());
                }
                if self.iter_time_ms.is_some() {
                    return Err(AmendError::IterTimeForErasing.into());
                }
                let old = self.old_secret.as_ref().map(passphrase).transpose()?;
                match (slot, old) {
                    (Some(slot), passphrase) => Ok(Change::RemoveSlot { slot, passphrase }),
                    (None, Some(passphrase)) => Ok(Change::RemovePassphrase(passphrase)),
                    (None, None) => Err(AmendError::EraseWhat.into()),
                }
            }
            Some(other) => Err(AmendError::State(other.to_owned()).into()),
        }
    }
}

/// An open volume whose slots are changed. `header` is what the area holds, as far as it is known.
pub struct Slots<'a> {
    /// Where header and key material lie; writable.
    pub area: &'a Area,
    /// The header. Kept true after each write.
    pub header: &'a mut Header,
    /// The volume's key.
    pub key: &'a MasterKey,
    /// Random bytes and time.
    pub outside: &'a dyn Outside,
    /// The way to all cores.
    pub spawner: Option<&'a Spawner>,
    /// Makes durable what was written. Whoever keeps more than keys in the file must learn of it when that fails.
    pub barrier: &'a (dyn Fn() -> BoxFuture<Result<()>> + Send + Sync),
}

impl Slots<'_> {
    /// Carries out a change. When it returns, the change is durable.
    ///
    /// # Errors
    /// The change is refused and nothing was written, or a write failed and the volume is as after a cut.
    pub async fn amend(&mut self, change: &Change, force: Force) -> Result<()> {
        match change {
            Change::Add { passphrase, slot, iter_time_ms } => {
                let time = iter_time_ms.unwrap_or(ITER_TIME_MS);
                match slot {
                    Some(slot) if self.header.slots[*slot].active && force == Force::No => {
                        Err(AmendError::SlotInUse(*slot).into())
                    }
                    Some(slot) if self.header.slots[*slot].active => {
                        self.replace(*slot, passphrase, time).await
                    }
                    Some(slot) => self.add(*slot, passphrase, time).await,
                    None => {
                        let free = self.free_slot().ok_or(AmendError::AllInUse)?;
                        self.add(free, passphrase, time).await
                    }
                }
            }
            Change::RemoveSlot { slot, passphrase } => {
                if !self.header.slots[*slot].active {
                    return Err(AmendError::AlreadyErased(*slot).into());
                }
                if let Some(passphrase) = passphrase
                    && self.matching(passphrase, |index| index == *slot).await?.is_none()
                {
                    return Err(AmendError::OtherPassphrase(*slot).into());
                }
                if force == Force::No && self.header.active_slots() == 1 {
                    return Err(AmendError::LastSlot(*slot).into());
                }
                self.remove(*slot).await
            }
            Change::RemovePassphrase(passphrase) => self.remove_passphrase(passphrase, force).await,
        }
    }

    fn free_slot(&self) -> Option<usize> {
        (0..SLOTS).find(|index| !self.header.slots[*index].active)
    }

    async fn matching(&self, passphrase: &Secret, filter: impl Fn(usize) -> bool) -> Result<Option<usize>> {
        let found = self.area.find_key(self.header, passphrase, self.spawner, filter).await?;
        Ok(found.map(|(index, _)| index))
    }

    async fn remove_passphrase(&mut self, passphrase: &Secret, force: Force) -> Result<()> {
        let mut matching = Vec::new();
        let mut from = 0;
        while let Some(index) = self.matching(passphrase, |index| index >= from).await? {
            matching.push(index);
            from = index + 1;
        }
        if matching.is_empty() {
            return Err(AmendError::NoMatch.into());
        }
        if force == Force::No && matching.len() == self.header.active_slots() {
            return Err(AmendError::LastPassphrase.into());
        }
        for slot in matching {
            self.remove(slot).await?;
        }
        Ok(())
    }

    async fn add(&mut self, slot: usize, passphrase: &Secret, time_ms: u64) -> Result<()> {
        let (key, outside, spawner) = (self.key, self.outside, self.spawner);
        // Whoever gave the slot up may have failed to make that durable: then its material is still somebody's.
        self.write_slot(slot).await?;
        (self.barrier)().await?;
        let mut next = self.header.clone();
        let material = fill_slot(&mut next, slot, key, passphrase, time_ms, outside, spawner).await?;
        *self.header = next;
        self.write_material(slot, material).await?;
        self.write_slot(slot).await?;
        if !mutant::is_active("key-unsettled") {
            (self.barrier)().await?;
        }
        self.header.slots[slot].active = true;
        self.write_slot(slot).await?;
        (self.barrier)().await
    }

    async fn remove(&mut self, slot: usize) -> Result<()> {
        self.header.slots[slot].active = false;
        self.write_slot(slot).await?;
        if !mutant::is_active("key-unsettled") {
            (self.barrier)().await?;
        }
        self.header.slots[slot].iterations = 0;
        self.header.slots[slot].salt = [0; SALT_BYTES];
        self.write_slot(slot).await?;
        let mut noise = Buf::zeroed(self.header.key_material_bytes());
        self.outside.fill_random(&mut noise)?;
        self.write_material(slot, noise).await?;
        (self.barrier)().await
    }

    async fn replace(&mut self, slot: usize, passphrase: &Secret, time_ms: u64) -> Result<()> {
        let spare = self.free_slot();
        if let Some(spare) = spare {
            self.add(spare, passphrase, time_ms).await?;
        }
        self.remove(slot).await?;
        self.add(slot, passphrase, time_ms).await?;
        match spare {
            Some(spare) => self.remove(spare).await,
            None => Ok(()),
        }
    }

    async fn write_slot(&self, slot: usize) -> Result<()> {
        let (offset, bytes) = self.header.slot_field(slot);
        self.area.child.write(self.area.offset + offset, Buf::copy_of(&bytes)).await
    }

    async fn write_material(&self, slot: usize, material: Buf) -> Result<()> {
        self.area.child.write(self.area.offset + self.header.key_offset(slot), material).await
    }
}
