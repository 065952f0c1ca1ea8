//! The names by which a differencing image finds its parent.
//!
//! They are stored several times, for several systems: relative and absolute with Windows' separators (`W2ru`, `W2ku`),
//! as a URL (`MacX`), and the bare file name in the header. What is found is a name; whether it is followed is the
//! policy's decision.

use cowbell_block::Child;

use crate::SECTOR;
use crate::error::VpcError;
use crate::header::RawHeader;

/// Longest name that a locator holds, in bytes.
pub const NAME_BYTES_MAX: usize = 64 << 10;

/// Relative to the image, in UTF-16.
pub const RELATIVE: [u8; 4] = *b"W2ru";
/// Absolute, in UTF-16.
pub const ABSOLUTE: [u8; 4] = *b"W2ku";
/// A URL in UTF-8.
pub const URL: [u8; 4] = *b"MacX";

/// The parent's name as a file name of this system: the first that is there, of relative, absolute, URL, and the name in
/// the header.
///
/// # Errors
/// There is none, or it is no text.
pub async fn parent_name(file: &Child, header: &RawHeader) -> cowbell_block::Result<String> {
    for (platform, what) in [(RELATIVE, "W2ru"), (ABSOLUTE, "W2ku"), (URL, "MacX")] {
        let Some(locator) = header.locators.iter().find(|locator| locator.platform == platform) else {
            continue;
        };
        let (len, offset) = (locator.data_len.get() as usize, locator.data_offset.get());
        if len == 0 {
            continue;
        }
        if len > NAME_BYTES_MAX {
            return Err(VpcError::ParentNameTooLong(len).into());
        }
        let end = offset.checked_add(len as u64).filter(|end| *end <= file.len());
        end.ok_or(VpcError::Truncated)?;
        let bytes = file.read(offset, len).await?;
        let name = match platform {
            URL => String::from_utf8(bytes.to_vec()).ok().and_then(|url| from_url(&url)),
            _ => utf16(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))),
        };
        let name = name.ok_or(VpcError::ParentName(what))?;
        // A name with a drive is one of another system's.
        match local(&name) {
            Some(name) => return Ok(name),
            None => continue,
        }
    }
    let name =
        utf16(header.parent_name.iter().map(|unit| unit.get())).ok_or(VpcError::ParentName("header"))?;
    let bare = local(&name).unwrap_or_else(|| name.rsplit(['\\', '/']).next().unwrap_or_default().to_owned());
    if bare.is_empty() {
        return Err(VpcError::NoParentName.into());
    }
    Ok(bare)
}

/// Text up to the first zero.
fn utf16(units: impl Iterator<Item = u16>) -> Option<String> {
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok()
}

fn from_url(url: &str) -> Option<String> {
    let path = url.trim_end_matches('\0').strip_prefix("file://")?;
    let path = &path[path.find('/')?..];
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The name with this system's separators. `None`: it has a drive or is empty.
fn local(name: &str) -> Option<String> {
    let mut chars = name.chars();
    let has_drive = chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.next() == Some(':');
    if has_drive || name.is_empty() || name.starts_with("\\\\") {
        return None;
    }
    let name = name.replace('\\', "/");
    Some(name.strip_prefix("./").map_or_else(|| name.clone(), str::to_owned))
}

/// The bytes of a locator for a name given by the user: `W2ku` if it is absolute, `W2ru` otherwise.
///
/// # Errors
/// It is too long.
pub fn encode(name: &str) -> Result<([u8; 4], Vec<u8>), VpcError> {
    let windows = name.replace('/', "\\");
    let (platform, text) = match name.starts_with('/') {
        true => (ABSOLUTE, windows),
        false => (RELATIVE, format!(".\\{windows}")),
    };
    let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    match bytes.len() <= NAME_BYTES_MAX {
        true => Ok((platform, bytes)),
        false => Err(VpcError::ParentNameTooLong(bytes.len())),
    }
}

/// Bytes that a locator's data takes in the file.
pub fn space(len: usize) -> u64 {
    (len as u64).next_multiple_of(SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_systems_become_ours() {
        for (name, expect) in [
            (".\\base.vhd", Some("base.vhd")),
            ("..\\x\\base.vhd", Some("../x/base.vhd")),
            ("\\srv\\base.vhd", Some("/srv/base.vhd")),
            ("C:\\base.vhd", None),
            ("\\\\host\\share\\b.vhd", None),
            ("", None),
        ] {
            assert_eq!(local(name).as_deref(), expect, "{name}");
        }
        assert_eq!(from_url("file://localhost/a%20b/c.vhd").as_deref(), Some("/a b/c.vhd"));
        assert_eq!(from_url("http://x/y"), None);
        assert_eq!(from_url("file:///a%2"), None);
    }

    #[test]
    fn a_name_that_was_encoded_is_read_back() {
        for name in ["base.vhd", "../d/b ä.vhd", "/srv/base.vhd"] {
            let (_, bytes) = encode(name).expect("short");
            let text = utf16(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
            assert_eq!(text.as_deref().and_then(local).as_deref(), Some(name));
        }
        assert!(encode(&"x".repeat(40_000)).is_err());
    }
}
