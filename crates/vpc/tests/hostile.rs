//! Images that break rules: told which, or read as far as they can be; never a panic, never more memory than stated.

mod support;

use std::sync::Arc;

use cowbell_block::{Access, Buf, ErrorKind, MemNode, Node, Request};
use cowbell_vpc::{CreateOptions, Subformat};
use support::{Chance, image, now, open, parent_of, with_blocks};

fn dynamic() -> Vec<u8> {
    let file =
        with_blocks(&image(&CreateOptions { size: 1 << 20, exact: true, ..CreateOptions::default() }), 65536);
    let disk = open(Arc::new(file.clone()), None, Access::ReadWrite).expect("opens");
    for at in [0, 300_000, 900_000] {
        now(disk.submit(Request::write(at / 512 * 512, Buf::copy_of(&[7; 512]))).finish())
            .result
            .expect("written");
    }
    now(disk.close()).expect("closed");
    file.content()
}

fn checksummed(mut content: Vec<u8>) -> Vec<u8> {
    let sum = |bytes: &[u8]| !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    content[64..68].fill(0);
    let footer = sum(&content[..512]);
    content[64..68].copy_from_slice(&footer.to_be_bytes());
    content
}

fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut content = dynamic();
    for (at, bytes) in changes {
        content[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    checksummed(content)
}

fn refusal(content: &[u8], access: Access) -> String {
    match open(Arc::new(MemNode::with_content(content)), None, access) {
        Ok(_) => "opened".to_owned(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn broken_rules_are_named() {
    let truncated =
        "block-vpc: free_data_block_offset points after the end of file. The image has been truncated.";
    let ff = [0xff; 8];
    for (changes, text) in [
        (&[(0, &b"C"[..])][..], "opened"),
        (&[(60, &[0, 0, 0, 9])], "disk type 9 is none of fixed (2), dynamic (3) and differencing (4)"),
        (&[(60, &[0, 0, 0, 4])], "the differencing image does not name its parent"),
        (
            &[(60, &[0, 0, 0, 2]), (48, &[0, 0, 0, 1, 0, 0, 0, 0])],
            "the disk has 4294967296 bytes, and its file only 200704 with the footer",
        ),
        (&[(512, b"x")], "Invalid header magic"),
        (&[(544, &[0, 0, 0, 0])], "Invalid block size 0"),
        (&[(544, &[0, 0, 3, 0])], "Invalid block size 768"),
        (&[(544, &[0, 0, 0, 128])], "Invalid block size 128"),
        (&[(544, &[0, 0, 2, 0])], "Page table too small"),
        (&[(544, &[0x80, 0, 0, 0])], truncated),
        (&[(540, &[0, 0, 0, 1])], "Page table too small"),
        (&[(540, &[0xff; 4])], "Max Table Entries too large (-1)"),
        (&[(528, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])], truncated),
        (&[(528, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0])], "Error reading pagetable"),
        (&[(16, &ff)], "Error reading dynamic VHD header"),
        (&[(16, &[0, 0, 0, 0, 1, 0, 0, 0])], "Invalid header magic"),
        (&[(48, &[0x7f; 8])], "the disk has 17943753809444799 sectors, and at most 4278190080 are possible"),
        (
            &[(48, &[0, 0, 0x01, 0, 0, 0, 0, 0]), (540, &[0x1f, 0, 0, 0]), (544, &[0, 0, 16, 0])],
            "the disk has 268435456 blocks, and a table of more than 4194304 is not opened",
        ),
        (&[(1536, &[0x7f, 0, 0, 0])], truncated),
    ] {
        assert_eq!(refusal(&with(changes), Access::ReadOnly), text);
    }
    let mut damaged = dynamic();
    damaged[100] ^= 1;
    assert_eq!(refusal(&damaged, Access::ReadOnly), "Incorrect header checksum");
    assert_eq!(refusal(&[], Access::ReadOnly), "File too small for a VHD header");
    assert_eq!(refusal(&[0; 600], Access::ReadOnly), "invalid VPC image");
    assert_eq!(refusal(&dynamic()[..516], Access::ReadOnly), "Invalid header magic");
    assert_eq!(refusal(&dynamic()[..700], Access::ReadOnly), truncated);
}

#[test]
fn what_lies_upon_something_else_is_only_read() {
    let entry = |content: &[u8], block: usize| content[1536 + block * 4..1540 + block * 4].to_vec();
    let good = dynamic();
    let first = entry(&good, 0);
    for (changes, other) in [
        (vec![(1536 + 4 * 4, first.as_slice())], "another block"),
        (vec![(1536, &[0, 0, 0, 1][..])], "the image's tables"),
        (vec![(1536, &[0, 0, 0, 5][..]), (1540, &[0, 0, 0, 20][..])], "another block"),
    ] {
        let content = with(&changes);
        assert_eq!(refusal(&content, Access::ReadOnly), "opened");
        let text = refusal(&content, Access::ReadWrite);
        assert!(text.contains(other) && text.ends_with("the image can only be read"), "{text}");
        let disk = open(Arc::new(MemNode::with_content(&content)), None, Access::ReadOnly).expect("opens");
        assert_eq!(now(disk.reopen(Access::ReadWrite)).expect_err("still").kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn a_parent_is_checked() {
    let base = image(&CreateOptions { size: 1 << 20, ..CreateOptions::default() });
    let parent = open(Arc::new(base), None, Access::ReadOnly).expect("opens");
    let child = image(&CreateOptions { parent: Some(parent_of(&parent, "b")), ..CreateOptions::default() });
    assert!(open(Arc::new(child.clone()), Some(parent.clone()), Access::ReadWrite).is_ok());
    let mut other = child.content();
    other[512 + 40] ^= 1;
    let error = open(Arc::new(MemNode::with_content(&other)), Some(parent.clone()), Access::ReadWrite);
    assert!(
        error
            .map(drop)
            .expect_err("another")
            .to_string()
            .contains("is not the image that this one was made on")
    );
    let mut older = child.content();
    older[512 + 56..512 + 60].copy_from_slice(&[0, 0, 0, 1]);
    let error = open(Arc::new(MemNode::with_content(&older)), Some(parent), Access::ReadWrite);
    assert!(error.map(drop).expect_err("newer").to_string().contains("was made after this image"));
}

/// Uses an image as far as it can be used.
fn exercise(content: &[u8], parent: Option<Arc<dyn Node>>, chance: &Chance) {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let Ok(disk) = open(Arc::new(MemNode::with_content(content)), parent.clone(), access) else {
            continue;
        };
        let len = disk.len();
        for _ in 0..12 {
            let at = if len < 512 { 0 } else { chance.below(len / 512) * 512 };
            let n = (1 + chance.below(300)) * 512;
            let n = n.min(len.saturating_sub(at));
            let request = match chance.below(5) {
                0 => Request::read(at, Buf::zeroed(n as usize)),
                1 => Request::write(at, Buf::copy_of(&vec![9; n as usize])),
                2 => Request::write_zeroes(at, n),
                3 => Request::status(at, len),
                _ => Request::flush(),
            };
            let _ = now(disk.submit(request).finish()).result;
        }
        let _ = now(disk.close());
    }
}

#[test]
fn no_image_does_harm() {
    let base = image(&CreateOptions { size: 1 << 20, ..CreateOptions::default() });
    let parent = open(Arc::new(base), None, Access::ReadOnly).expect("opens");
    let child = image(&CreateOptions { parent: Some(parent_of(&parent, "b")), ..CreateOptions::default() });
    let fixed =
        image(&CreateOptions { size: 65536, subformat: Subformat::Fixed, ..CreateOptions::default() });
    let images = [dynamic(), with_blocks(&child, 32768).content(), fixed.content()];
    for seed in 0..4000u64 {
        let chance = Chance::new(seed);
        let mut content = images[(seed % 3) as usize].clone();
        for _ in 0..1 + chance.below(4) {
            // Mostly among the structures, and mostly values that mean something.
            let at = match chance.below(4) {
                0 => chance.below(content.len() as u64) as usize,
                1 => content.len() - 1 - chance.below(512) as usize,
                _ => chance.below(1700.min(content.len() as u64)) as usize,
            };
            let value = [0, 1, 0x7f, 0x80, 0xff, chance.below(256) as u8][chance.below(6) as usize];
            let run = 1 + chance.below(8) as usize;
            let end = (at + run).min(content.len());
            content[at..end].fill(value);
        }
        if chance.below(8) == 0 {
            content.truncate(chance.below(content.len() as u64) as usize);
        }
        if chance.below(5) != 0 && content.len() >= 512 && content.starts_with(b"conectix") {
            content = checksummed(content);
        }
        exercise(&content, (seed % 3 == 1).then(|| parent.clone()), &chance);
    }
}
