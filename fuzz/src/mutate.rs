//! Damage to a scene that knows where an image's structures lie, beside what a fuzzer does to plain bytes.

use cowbell_difftest::layout::{Layout, get, put};
use cowbell_difftest::rng::Rng;

use crate::scene::Scene;

/// Largest tables whose entries are looked at one by one.
const TABLE_BYTES_MAX: u64 = 1 << 20;

/// Mutates plain bytes in place, within the capacity of the slice; the new length.
pub type Plain<'a> = &'a mut dyn FnMut(&mut [u8], usize) -> usize;

/// A scene made from another one.
pub fn scene(bytes: &[u8], rng: &mut Rng, plain: Plain<'_>) -> Scene {
    let mut scene = Scene::decode(bytes);
    if rng.percent(25) {
        let mut choices = scene.choices.clone();
        choices.resize(64.max(choices.len()), 0);
        let len = plain(&mut choices, scene.choices.len());
        choices.truncate(len);
        scene.choices = choices;
        return scene;
    }
    let Some(mut file) = scene.dense() else {
        return Scene::decode(&changed(bytes, plain));
    };
    match rng.below(10) {
        0..6 => structures(&mut file, rng),
        6..8 => window(&mut file, rng, plain),
        8 => copy(&mut file, rng),
        _ => resize(&mut file, rng),
    }
    Scene::of_file(&scene.choices, &file)
}

fn changed(bytes: &[u8], plain: Plain<'_>) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(bytes.len() + 32, 0);
    let len = plain(&mut out, bytes.len());
    out.truncate(len);
    out
}

/// Changes one to three named fields, if the image is sound enough to find them.
fn structures(file: &mut [u8], rng: &mut Rng) {
    for _ in 0..1 + rng.below(3) {
        if !is_mapped(file) {
            return;
        }
        if let Some((field, value, _)) = Layout::of(file).damage(rng) {
            put(file, &field, value);
        }
    }
}

/// Whether the structures can be found: [`Layout`] believes what it reads.
pub fn is_mapped(file: &[u8]) -> bool {
    let len = file.len() as u64;
    let cluster_bits = get(file, 20, 4);
    if !file.starts_with(b"QFI\xfb") || !(9..=21).contains(&cluster_bits) {
        return false;
    }
    let (l1, table) = (get(file, 36, 4), get(file, 56, 4) << cluster_bits);
    let inside = |offset: u64| offset <= len;
    l1 << cluster_bits <= TABLE_BYTES_MAX
        && table <= TABLE_BYTES_MAX
        && get(file, 96, 4) <= 6
        && inside(get(file, 40, 8))
        && inside(get(file, 48, 8))
        && inside(get(file, 64, 8))
}

/// A few bytes somewhere, as the fuzzer likes.
fn window(file: &mut [u8], rng: &mut Rng, plain: Plain<'_>) {
    if file.is_empty() {
        return;
    }
    let at = rng.below(file.len() as u64) as usize;
    let to = (at + 1 + rng.below(32) as usize).min(file.len());
    let part = &mut file[at..to];
    let len = part.len();
    let kept = plain(part, len);
    part[kept..].fill(0);
}

/// A block of the file over another one.
fn copy(file: &mut [u8], rng: &mut Rng) {
    let block = rng.pick(&[8usize, 24, 64, 512]);
    let blocks = (file.len() / block) as u64;
    if blocks > 1 {
        let (from, to) = (rng.below(blocks) as usize * block, rng.below(blocks) as usize * block);
        file.copy_within(from..from + block, to);
    }
}

fn resize(file: &mut Vec<u8>, rng: &mut Rng) {
    let len = file.len() as u64;
    let to = if rng.percent(50) { rng.below(len + 1) } else { len + rng.below(8192) };
    file.resize(to as usize, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Damage upon damage never fails, whatever the file has become.
    #[test]
    fn damage_goes_on_and_on() {
        let mut rng = Rng::new(8);
        let image = include_bytes!("../corpus/images/snapshots.qcow2");
        let mut bytes = Scene::of_file(&[1; 20], image).encode();
        let mut plain = |part: &mut [u8], len: usize| {
            if let Some(byte) = part.first_mut() {
                *byte = byte.wrapping_add(77);
            }
            len
        };
        for _ in 0..3000 {
            bytes = scene(&bytes, &mut rng, &mut plain).encode();
        }
        assert_ne!(Scene::decode(&bytes).dense().as_deref(), Some(&image[..]));
    }
}
