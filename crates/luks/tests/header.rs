//! Headers that are damaged or hostile: each has its reaction, in the reference's words where it has any, and none
//! costs more than it should.

use cowbell_luks::header::{HEADER_BYTES, ITERATIONS_MAX};
use cowbell_luks::{Header, Placement};

const AREA: u64 = 2 << 20;

/// A header as the tools make it: AES-256-XTS, one passphrase.
fn sound() -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    put(&mut bytes, 0, b"LUKS\xba\xbe\0\x01");
    text(&mut bytes, 8, "aes");
    text(&mut bytes, 40, "xts-plain64");
    text(&mut bytes, 72, "sha256");
    word(&mut bytes, 104, 4040);
    word(&mut bytes, 108, 64);
    word(&mut bytes, 164, 1000);
    for slot in 0..8 {
        let at = 208 + 48 * slot;
        word(&mut bytes, at, if slot == 0 { 0x00ac_71f3 } else { 0xdead });
        word(&mut bytes, at + 4, if slot == 0 { 1000 } else { 0 });
        word(&mut bytes, at + 40, 8 + 504 * slot as u32);
        word(&mut bytes, at + 44, 4000);
    }
    bytes
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn word(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_be_bytes());
}

fn text(bytes: &mut [u8], at: usize, value: &str) {
    bytes[at..at + 32].fill(0);
    put(bytes, at, value.as_bytes());
}

fn check(change: impl FnOnce(&mut Vec<u8>), expect: &str) {
    let mut bytes = sound();
    change(&mut bytes);
    let error = Header::parse(&bytes, Placement::Attached(AREA)).expect_err(expect);
    assert_eq!(error.to_string(), expect);
}

#[test]
fn a_sound_header_leads_back() {
    let header = Header::parse(&sound(), Placement::Attached(AREA)).expect("sound");
    assert_eq!(header.encode()[..], sound());
    assert_eq!(
        (header.active_slots(), header.payload_offset(), header.key_offset(1)),
        (1, 2_068_480, 262_144)
    );
    let mut detached = sound();
    word(&mut detached, 104, 0);
    assert!(Header::parse(&detached, Placement::Detached(AREA)).is_ok());
    assert!(Header::parse(&detached, Placement::Attached(AREA)).is_err());
}

#[test]
fn names_and_numbers_are_checked() {
    check(|b| word(b, 0, 1), "Volume is not in LUKS format");
    check(|b| put(b, 6, &[0, 2]), "LUKS version 2 is not supported");
    check(|b| b.truncate(591), "LUKS header of 592 bytes expected, the volume has 591");
    check(|b| b.clear(), "LUKS header of 592 bytes expected, the volume has 0");
    check(|b| b[8..40].fill(b'a'), "LUKS header cipher name is not NUL terminated");
    check(|b| b[40..72].fill(b'a'), "LUKS header cipher mode is not NUL terminated");
    check(|b| b[72..104].fill(b'a'), "LUKS header hash spec is not NUL terminated");
    check(|b| b[8] = 0xff, "LUKS header cipher name is not text");
    check(|b| text(b, 8, "foo"), "Algorithm 'foo' with key size 32 bytes not supported");
    check(|b| text(b, 40, "ecb"), "Unexpected cipher mode string format 'ecb'");
    check(|b| text(b, 40, "foo-plain"), "Cipher mode 'foo' not supported");
    check(|b| text(b, 40, "xts-foo"), "IV generator 'foo' not supported");
    check(|b| text(b, 40, "xts-essiv"), "Missing IV generator hash specification");
    check(|b| text(b, 40, "xts-essiv:foo"), "Hash algorithm 'foo' not supported");
    check(|b| text(b, 40, "cbc-essiv:sha1"), "Algorithm 'aes' with key size 64 bytes not supported");
    check(|b| text(b, 40, "xts-essiv:sha1"), "No AES cipher with key size 20 available");
    check(|b| text(b, 72, ""), "Hash algorithm '' not supported");
    check(|b| word(b, 108, 0), "Algorithm 'aes' with key size 0 bytes not supported");
    check(|b| word(b, 108, 20), "Algorithm 'aes' with key size 10 bytes not supported");
    check(|b| word(b, 108, 33), "Algorithm 'aes' with key size 16 bytes not supported");
    check(|b| word(b, 164, 0), "LUKS key iteration count is zero");
    let max = format!("LUKS key iteration count 4294967295 is more than {ITERATIONS_MAX}");
    check(|b| word(b, 164, u32::MAX), &max);
}

#[test]
fn nothing_lies_where_something_else_lies() {
    check(|b| word(b, 104, 0), "LUKS payload is overlapping with the header");
    check(|b| word(b, 104, 1), "LUKS payload is overlapping with the header");
    check(|b| word(b, 104, 4000), "Keyslot 7 is overlapping with the encrypted payload");
    check(|b| word(b, 108, 128), "Keyslots 0 and 1 are overlapping in the header");
    check(|b| word(b, 108, u32::MAX), "Keyslot 0 is overlapping with the encrypted payload");
    check(|b| word(b, 208 + 40, 1), "Keyslot 0 is overlapping with the LUKS header");
    check(|b| word(b, 208 + 40, u32::MAX), "Keyslot 0 is overlapping with the encrypted payload");
    check(|b| word(b, 208 + 48 + 40, 9), "Keyslots 0 and 1 are overlapping in the header");
    check(|b| word(b, 208 + 48 * 3 + 40, u32::MAX), "Keyslot 3 is overlapping with the encrypted payload");
    let mut far = sound();
    word(&mut far, 104, u32::MAX);
    word(&mut far, 208 + 40, 1 << 20);
    let error = Header::parse(&far, Placement::Attached(AREA)).expect_err("far behind the end").to_string();
    assert_eq!(error, "Keyslot 0 ends at byte 537126912, outside of the header area of 2097152 bytes");
}

#[test]
fn slots_are_checked() {
    check(|b| word(b, 208, 5), "Keyslot 0 state (active/disable) is corrupted");
    check(|b| word(b, 208 + 48 * 3, 5), "Keyslot 3 state (active/disable) is corrupted");
    check(|b| word(b, 208 + 4, 0), "Keyslot 0 iteration count is zero");
    let max = format!("Keyslot 0 iteration count 4294967295 is more than {ITERATIONS_MAX}");
    check(|b| word(b, 208 + 4, u32::MAX), &max);
    check(|b| word(b, 208 + 44, 1), "Keyslot 0 is corrupted (stripes 1 != 4000)");
    check(|b| word(b, 208 + 44, u32::MAX), "Keyslot 0 is corrupted (stripes -1 != 4000)");
    check(|b| word(b, 208 + 48 * 7 + 44, 0), "Keyslot 7 is corrupted (stripes 0 != 4000)");
}

#[test]
fn any_one_byte_may_be_anything() {
    for at in 0..HEADER_BYTES {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = sound();
            bytes[at] = value;
            // Whatever comes of it comes at once and without a panic.
            let _ = Header::parse(&bytes, Placement::Attached(AREA));
        }
    }
}
