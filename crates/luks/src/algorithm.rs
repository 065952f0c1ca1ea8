//! Names and sizes: which ciphers, modes, IV generators and hashes there are, as options and headers call them.
//!
//! | here | in options | in a LUKS header |
//! |---|---|---|
//! | [`CipherAlg`] | `aes-256` | `aes`, and the length of the key |
//! | [`CipherMode`], [`IvAlg`], [`Hash`] | `xts`, `essiv`, `sha256` | `cbc-essiv:sha256` |

pub use crate::hash::Hash;

/// A block cipher with the length of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum CipherAlg {
    Aes128,
    Aes192,
    Aes256,
    Cast5_128,
    Serpent128,
    Serpent192,
    Serpent256,
    Twofish128,
    Twofish192,
    Twofish256,
}

/// Ciphers that the reference's interface knows by name, and its tools and these refuse for disks.
const UNSUPPORTED: [&str; 3] = ["des", "3des", "sm4"];

/// A name that stands for nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Nobody has it.
    Name,
    /// The reference's interface has it, for other purposes.
    NotForDisks,
}

impl CipherAlg {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Aes128,
        Self::Aes192,
        Self::Aes256,
        Self::Cast5_128,
        Self::Serpent128,
        Self::Serpent192,
        Self::Serpent256,
        Self::Twofish128,
        Self::Twofish192,
        Self::Twofish256,
    ];

    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "aes-128",
            Self::Aes192 => "aes-192",
            Self::Aes256 => "aes-256",
            Self::Cast5_128 => "cast5-128",
            Self::Serpent128 => "serpent-128",
            Self::Serpent192 => "serpent-192",
            Self::Serpent256 => "serpent-256",
            Self::Twofish128 => "twofish-128",
            Self::Twofish192 => "twofish-192",
            Self::Twofish256 => "twofish-256",
        }
    }

    /// The cipher of this name in options.
    ///
    /// # Errors
    /// Whether the name is at least known.
    pub fn from_name(name: &str) -> Result<Self, Unknown> {
        let found = Self::ALL.into_iter().find(|alg| alg.name() == name);
        let unknown = if UNSUPPORTED.contains(&name) { Unknown::NotForDisks } else { Unknown::Name };
        found.ok_or(unknown)
    }

    /// The name in a LUKS header, which leaves the length of the key to another field.
    pub fn header_name(self) -> &'static str {
        match self {
            Self::Aes128 | Self::Aes192 | Self::Aes256 => "aes",
            Self::Cast5_128 => "cast5",
            Self::Serpent128 | Self::Serpent192 | Self::Serpent256 => "serpent",
            Self::Twofish128 | Self::Twofish192 | Self::Twofish256 => "twofish",
        }
    }

    /// The cipher of this name in a LUKS header with a key of `bytes`.
    pub fn from_header(name: &str, bytes: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.header_name() == name && alg.key_bytes() == bytes)
    }

    /// Length of the cipher's own key. XTS takes two of them.
    pub fn key_bytes(self) -> usize {
        match self {
            Self::Aes128 | Self::Cast5_128 | Self::Serpent128 | Self::Twofish128 => 16,
            Self::Aes192 | Self::Serpent192 | Self::Twofish192 => 24,
            Self::Aes256 | Self::Serpent256 | Self::Twofish256 => 32,
        }
    }

    /// Length of a block.
    pub fn block_bytes(self) -> usize {
        if self == Self::Cast5_128 { 8 } else { 16 }
    }

    /// The cipher that encrypts sector numbers for ESSIV: one of the same family whose key is as long as the hash.
    ///
    /// # Errors
    /// There is none.
    pub fn for_essiv(self, hash: Hash) -> Result<Self, EssivError> {
        let bytes = hash.digest_bytes();
        if self.key_bytes() == bytes {
            return Ok(self);
        }
        let family = match self.header_name() {
            "aes" => "AES",
            "serpent" => "Serpent",
            "twofish" => "Twofish",
            _ => return Err(EssivError::Cipher(self.name())),
        };
        Self::from_header(self.header_name(), bytes).ok_or(EssivError::KeySize { family, bytes })
    }
}

/// A hash that does not fit a cipher in ESSIV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EssivError {
    /// The hash is longer or shorter than any key of the family.
    #[error("No {family} cipher with key size {bytes} available")]
    KeySize {
        /// Of ciphers.
        family: &'static str,
        /// Length of the hash.
        bytes: usize,
    },
    /// The cipher has one length of key only.
    #[error("Cipher {0} not supported with essiv")]
    Cipher(&'static str),
}

/// How a cipher is applied to a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum CipherMode {
    Ecb,
    Cbc,
    Xts,
    Ctr,
}

impl CipherMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ecb, Self::Cbc, Self::Xts, Self::Ctr];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ecb => "ecb",
            Self::Cbc => "cbc",
            Self::Xts => "xts",
            Self::Ctr => "ctr",
        }
    }

    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// How many keys of the cipher the mode takes.
    pub fn keys(self) -> usize {
        if self == Self::Xts { 2 } else { 1 }
    }
}

/// How the IV is made from a sector's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvAlg {
    /// The number's low 32 bits.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with a hash of the key.
    Essiv,
}

impl IvAlg {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Plain64, Self::Essiv];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv => "essiv",
        }
    }

    /// The generator of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.name() == name)
    }
}

/// All that decides how sectors are encrypted, but the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    /// The cipher.
    pub alg: CipherAlg,
    /// Its mode.
    pub mode: CipherMode,
    /// Where IVs come from.
    pub iv: IvAlg,
    /// The hash of ESSIV. Headers may name one for other generators too, where it has no meaning.
    pub iv_hash: Option<Hash>,
}

impl CipherSpec {
    /// What qcow2 images with encryption method 1 use.
    pub const LEGACY_AES: Self =
        Self { alg: CipherAlg::Aes128, mode: CipherMode::Cbc, iv: IvAlg::Plain64, iv_hash: None };

    /// Length of the whole key.
    pub fn key_bytes(&self) -> usize {
        self.alg.key_bytes() * self.mode.keys()
    }

    /// How a LUKS header writes mode, generator and its hash.
    pub fn mode_text(&self) -> String {
        let (mode, iv) = (self.mode.name(), self.iv.name());
        match self.iv_hash {
            Some(hash) => format!("{mode}-{iv}:{}", hash.name()),
            None => format!("{mode}-{iv}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for alg in CipherAlg::ALL {
            assert_eq!(CipherAlg::from_name(alg.name()), Ok(alg));
            assert_eq!(CipherAlg::from_header(alg.header_name(), alg.key_bytes()), Some(alg));
        }
        assert_eq!(CipherAlg::from_name("sm4"), Err(Unknown::NotForDisks));
        assert_eq!(CipherAlg::from_name("aes"), Err(Unknown::Name));
        assert_eq!(CipherAlg::from_header("aes", 20), None);
    }

    #[test]
    fn essiv_takes_a_key_as_long_as_the_hash() {
        assert_eq!(CipherAlg::Aes128.for_essiv(Hash::Sha256), Ok(CipherAlg::Aes256));
        assert_eq!(CipherAlg::Cast5_128.for_essiv(Hash::Md5), Ok(CipherAlg::Cast5_128));
        let error = |alg: CipherAlg, hash| alg.for_essiv(hash).expect_err("does not fit").to_string();
        assert_eq!(error(CipherAlg::Serpent256, Hash::Sha1), "No Serpent cipher with key size 20 available");
        assert_eq!(error(CipherAlg::Cast5_128, Hash::Sha256), "Cipher cast5-128 not supported with essiv");
    }
}
