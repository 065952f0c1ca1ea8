//! `--object`: the secrets and throttle groups that a user defines, as `TYPE,key=value,...` or as JSON.
//!
//! Definitions are carried out in their order: a secret may be encrypted with one that came before it.

use anyhow::{Result, anyhow, bail};
use cowbell_block::ThrottleGroups;
use cowbell_block::naming::split_option_list;
use cowbell_block::options::OptionTree;
use cowbell_block::secrets::{Secret, SecretError, Secrets};
use cowbell_luks::secret::{decode_base64, decrypt};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::open::reason;
use cowbell_host::path_of;

mod throttle;

const SECRET: &str = "secret";
const SECRET_KEYRING: &str = "secret_keyring";
/// Longest file that is taken for a secret.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Types that the reference's tools know, and these do not have.
const ABSENT: [&str; 9] = [
    "authz-list",
    "authz-list-file",
    "authz-simple",
    "main-loop",
    "pr-manager-helper",
    "thread-context",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];

/// The text that a definition asks for instead of defining something.
pub(crate) fn help(definition: &str) -> Option<String> {
    if definition.starts_with('{') {
        return None;
    }
    let mut words = definition.split(',');
    let first = words.next().unwrap_or_default();
    if matches!(first, "help" | "?") {
        let types = [SECRET, SECRET_KEYRING, throttle::TYPE].join("\n  ");
        return Some(format!("List of user creatable objects:\n  {types}\n"));
    }
    if !words.any(|word| matches!(word, "help" | "?")) {
        return None;
    }
    let name = first.strip_prefix("qom-type=").unwrap_or(first);
    let of_secrets = ["format=<QCryptoSecretFormat>", "iv=<string>", "keyid=<string>"].map(str::to_owned);
    let mut lines: Vec<String> = match name {
        SECRET => {
            ["data=<string>", "file=<string>"].map(str::to_owned).into_iter().chain(of_secrets).collect()
        }
        SECRET_KEYRING => ["serial=<int>".to_owned()].into_iter().chain(of_secrets).collect(),
        throttle::TYPE => throttle::properties().collect(),
        _ => return None,
    };
    lines.sort_unstable();
    Some(format!("{name} options:\n  {}\n", lines.join("\n  ")))
}

/// Defines what `definition` says.
///
/// # Errors
/// What is wrong with it, in the reference's words.
pub(crate) fn define(definition: &str, secrets: &mut Secrets, groups: &mut ThrottleGroups) -> Result<()> {
    let mut properties = properties(definition)?;
    let Some(kind) = properties.take("qom-type")? else { bail!("Parameter 'qom-type' is missing") };
    match kind.as_str() {
        SECRET | SECRET_KEYRING | throttle::TYPE => {}
        kind if ABSENT.contains(&kind) => {
            bail!("objects of type '{kind}' are not available in this version of cowbell")
        }
        "iothread" => bail!("invalid object type: iothread"),
        kind => bail!("Parameter 'qom-type' does not accept value '{kind}'"),
    }
    let Some(id) = properties.take("id")? else { bail!("Parameter 'id' is missing") };
    check_id(&id)?;
    if kind.as_str() == throttle::TYPE {
        let group = throttle::group(&id, &mut properties)?;
        properties.expect_empty()?;
        if groups.get(&id).is_some() || secrets.get(&id).is_ok() {
            return Err(SecretError::Duplicate(id.to_string()).into());
        }
        groups.add(group);
        return Ok(());
    }
    let form = Form {
        base64: match properties.take("format")?.as_ref().map(|s| s.as_str()) {
            None | Some("raw") => false,
            Some("base64") => true,
            Some(other) => bail!("Parameter 'format' does not accept value '{other}'"),
        },
        key: properties.take("keyid")?.map(|id| secrets.get(&id)).transpose()?,
        iv: properties.take("iv")?,
    };
    let given = match kind.as_str() {
        SECRET_KEYRING => from_keyring(&mut properties)?,
        _ => from_user(&mut properties)?,
    };
    properties.expect_empty()?;
    let secret = form.decode(given)?;
    if groups.get(&id).is_some() {
        return Err(SecretError::Duplicate(id.to_string()).into());
    }
    secrets.add(&id, Secret::new(secret))?;
    Ok(())
}

/// The properties of an object that are not understood yet.
struct Properties {
    tree: OptionTree,
    /// Whether values have types, as in JSON; in a list all are text.
    typed: bool,
}

fn properties(definition: &str) -> Result<Properties> {
    if definition.starts_with('{') {
        let parsed: Value = serde_json::from_str(definition).map_err(|e| anyhow!("JSON parse error, {e}"))?;
        let Value::Object(tree) = parsed else { bail!("Invalid JSON object given") };
        return Ok(Properties { tree, typed: true });
    }
    let mut tree = OptionTree::new();
    for (index, (key, value)) in split_option_list(definition).into_iter().enumerate() {
        // The first word without a key is the type.
        let bare = index == 0 && !definition[key.len()..].starts_with('=');
        let (key, value) = if bare { ("qom-type", key.to_owned()) } else { (key, value) };
        tree.insert(key.to_owned(), value.into());
    }
    Ok(Properties { tree, typed: false })
}

impl Properties {
    fn take(&mut self, key: &str) -> Result<Option<Zeroizing<String>>> {
        match self.tree.shift_remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(Zeroizing::new(text))),
            Some(Value::Number(number)) => Ok(Some(Zeroizing::new(number.to_string()))),
            Some(_) => bail!("Invalid parameter type for '{key}', expected: string"),
        }
    }

    fn expect_empty(&self) -> Result<()> {
        match self.tree.keys().next() {
            Some(key) => bail!("Parameter '{key}' is unexpected"),
            None => Ok(()),
        }
    }
}

fn check_id(id: &str) -> Result<()> {
    let wellformed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !id.starts_with(|c: char| c.is_ascii_alphabetic()) || !id.chars().all(wellformed) {
        bail!(
            "Parameter 'id' expects an identifier\n\
             Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
        );
    }
    Ok(())
}

fn from_user(properties: &mut Properties) -> Result<Zeroizing<Vec<u8>>> {
    match (properties.take("data")?, properties.take("file")?) {
        (Some(_), Some(_)) => bail!("'file' and 'data' are mutually exclusive"),
        (None, None) => bail!("Either 'file' or 'data' must be provided"),
        (Some(data), None) => Ok(Zeroizing::new(data.as_bytes().to_vec())),
        (None, Some(path)) => read_file(&path),
    }
}

fn read_file(path: &str) -> Result<Zeroizing<Vec<u8>>> {
    use std::io::Read;
    let failed = |what: &str, e: &std::io::Error| {
        anyhow!("Unable to read {path}: Failed to {what} file “{path}”: {}", reason(e))
    };
    let file = std::fs::File::open(path_of(path)).map_err(|e| failed("open", &e))?;
    // Of the final length from the start: what a buffer leaves behind when it grows is not wiped.
    let len = file.metadata().map(|meta| meta.len()).unwrap_or(0).min(FILE_BYTES_MAX);
    let mut content = Zeroizing::new(Vec::with_capacity(len as usize + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|e| failed("read from", &e))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        bail!("Unable to read {path}: more than {FILE_BYTES_MAX} bytes");
    }
    Ok(content)
}

fn from_keyring(properties: &mut Properties) -> Result<Zeroizing<Vec<u8>>> {
    let Some(serial) = properties.take("serial")? else { bail!("Parameter 'serial' is missing") };
    let Ok(serial) = serial.parse::<i32>() else { bail!("Parameter 'serial' expects a number") };
    let secret = cowbell_host::keyring_key(serial)
        .map_err(|e| anyhow!("Unable to read serial key {serial:08x}: {e}"))?;
    Ok(Zeroizing::new(secret.bytes().to_vec()))
}

/// How the bytes of a secret are written down.
struct Form {
    base64: bool,
    key: Option<Secret>,
    iv: Option<Zeroizing<String>>,
}

impl Form {
    fn decode(&self, given: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>> {
        let bytes = match self.base64 {
            true => decode_base64(&given)?,
            false => given,
        };
        let Some(key) = &self.key else { return Ok(bytes) };
        if key.bytes().len() != 32 {
            return Err(cowbell_luks::secret::SecretFormError::KeyBytes.into());
        }
        let iv = self.iv.as_ref().ok_or(cowbell_luks::secret::SecretFormError::NoIv)?;
        let iv = decode_base64(iv.as_bytes())?;
        Ok(decrypt(key.bytes(), &iv, &bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defined(definitions: &[&str]) -> Result<Vec<u8>> {
        let (mut secrets, mut groups) = (Secrets::default(), ThrottleGroups::default());
        for definition in definitions {
            define(definition, &mut secrets, &mut groups)?;
        }
        Ok(secrets.get("s")?.bytes().to_vec())
    }

    fn gives(definitions: &[&str], expect: &[u8]) {
        assert_eq!(defined(definitions).expect("good"), expect, "{definitions:?}");
    }

    fn fails(definitions: &[&str], expect: &str) {
        assert_eq!(defined(definitions).expect_err(expect).to_string(), expect);
    }

    #[test]
    fn secrets_are_given_in_many_forms() {
        gives(&["secret,id=s,data=a,,b"], b"a,b");
        gives(&["secret,id=s,data="], b"");
        gives(&["id=s,qom-type=secret,data=abc"], b"abc");
        gives(&[r#"{"qom-type":"secret","id":"s","data":"abc"}"#], b"abc");
        gives(&["secret,id=s,data=YWJj,format=base64"], b"abc");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        std::fs::write(&path, [0, 255, 10]).expect("written");
        gives(&[&format!("secret,id=s,file={}", path.display())], &[0, 255, 10]);
        let key = "secret,id=k,format=base64,data=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let encrypted = "format=base64,keyid=k,iv=AAECAwQFBgcICQoLDA0ODw==,data=vgGE1F0TcGHwRZWSY7AP2w==";
        gives(&[key, &format!("secret,id=s,{encrypted}")], b"my passphrase");
    }

    #[test]
    fn mistakes_are_told_in_the_references_words() {
        fails(&[""], "Parameter 'qom-type' is missing");
        fails(&["nosuch,id=s"], "Parameter 'qom-type' does not accept value 'nosuch'");
        fails(&["iothread,id=s"], "invalid object type: iothread");
        fails(
            &["tls-creds-x509,id=s"],
            "objects of type 'tls-creds-x509' are not available in this version of cowbell",
        );
        fails(&["secret,data=abc"], "Parameter 'id' is missing");
        fails(&["secret,id=s"], "Either 'file' or 'data' must be provided");
        fails(&["secret,id=s,data=a,file=b"], "'file' and 'data' are mutually exclusive");
        fails(&["secret,id=s,data=a,foo=1"], "Parameter 'foo' is unexpected");
        fails(&["secret,id=s,data=a,format=foo"], "Parameter 'format' does not accept value 'foo'");
        fails(&["secret,id=s,data=a!c,format=base64"], "Base64 data contains invalid characters");
        fails(&["secret,id=s,data=a,keyid=zz"], "No secret with id 'zz'");
        fails(&["secret,id=k,data=a", "secret,id=s,data=a,keyid=k"], "Key should be 32 bytes in length");
        fails(
            &["secret,id=s,file=/nonexistent"],
            "Unable to read /nonexistent: Failed to open file “/nonexistent”: No such file or directory",
        );
        fails(
            &["secret,id=s,data=a", "secret,id=s,data=a"],
            "attempt to add duplicate property 's' to object (type 'container')",
        );
        fails(
            &["throttle-group,id=s", "secret,id=s,data=a"],
            "attempt to add duplicate property 's' to object (type 'container')",
        );
        fails(&["secret_keyring,id=s"], "Parameter 'serial' is missing");
        fails(
            &["secret,id=0s,data=a"],
            "Parameter 'id' expects an identifier\n\
             Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
        );
    }

    #[test]
    fn help_is_given_where_it_is_asked_for() {
        assert!(help("help").expect("a list").contains("\n  secret\n"));
        assert!(help("secret,help").expect("properties").contains("\n  keyid=<string>\n"));
        assert_eq!(help("secret,id=s,data=a"), None);
        assert_eq!(help(r#"{"help":1}"#), None);
    }
}
