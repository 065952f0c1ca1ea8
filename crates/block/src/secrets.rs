//! Secrets: passphrases and keys, by the names that options call them.
//!
//! A program fills a [`Secrets`] from its command line and hands it down with the
//! [`OpenContext`](crate::context::OpenContext); nothing here is global. The bytes are wiped from memory with the
//! last handle.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind};

/// Bytes that nobody should see. Cloning shares them.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Zeroizing<Vec<u8>>>) -> Self {
        Self(Arc::new(bytes.into()))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret that cannot be had, or not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Nobody defined it.
    #[error("No secret with id '{0}'")]
    Unknown(String),
    /// Passphrases are text, as everywhere in the reference.
    #[error("Data from secret {0} is not valid UTF-8")]
    NotText(String),
    /// A second one of the name.
    #[error("attempt to add duplicate property '{0}' to object (type 'container')")]
    Duplicate(String),
}

impl From<SecretError> for Error {
    fn from(e: SecretError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// Secrets by name. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Arc<BTreeMap<String, Secret>>);

impl Secrets {
    /// Adds a secret.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add(&mut self, id: &str, secret: Secret) -> Result<(), SecretError> {
        if self.0.contains_key(id) {
            return Err(SecretError::Duplicate(id.to_owned()));
        }
        Arc::make_mut(&mut self.0).insert(id.to_owned(), secret);
        Ok(())
    }

    /// The secret of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> Result<Secret, SecretError> {
        self.0.get(id).cloned().ok_or_else(|| SecretError::Unknown(id.to_owned()))
    }

    /// The passphrase of this name.
    ///
    /// # Errors
    /// There is none, or it is no text.
    pub fn passphrase(&self, id: &str) -> Result<Secret, SecretError> {
        let secret = self.get(id)?;
        match std::str::from_utf8(secret.bytes()) {
            Ok(_) => Ok(secret),
            Err(_) => Err(SecretError::NotText(id.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_by_name_and_never_shown() {
        let mut secrets = Secrets::default();
        secrets.add("a", Secret::new(b"abc".to_vec())).expect("new");
        secrets.add("b", Secret::new(vec![0xff])).expect("new");
        assert_eq!(secrets.passphrase("a").expect("text").bytes(), b"abc");
        assert_eq!(secrets.passphrase("b").err(), Some(SecretError::NotText("b".into())));
        assert_eq!(secrets.get("c").err(), Some(SecretError::Unknown("c".into())));
        assert!(secrets.add("a", Secret::new(vec![])).is_err());
        assert!(!format!("{secrets:?}").contains("97"), "{secrets:?}");
    }
}
