//! Cylinders, heads and sectors: the lengths that old controllers can address, and the one that a disk gets.

use crate::SECTOR;

/// Most sectors of an image: 2040 GiB.
pub const SECTORS_MAX: u64 = 0xff00_0000;

/// A disk's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Chs {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors on a track.
    pub sectors: u8,
}

impl Chs {
    /// The largest there is, which stands for disks that no geometry describes.
    pub const MAX: Self = Self { cylinders: 65535, heads: 16, sectors: 255 };

    /// How many sectors it describes.
    pub fn total(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }

    /// The geometry for a disk of so many sectors, by the specification's algorithm: it describes at most so many.
    pub fn at_most(sectors: u64) -> Self {
        let total = sectors.min(Self::MAX.total());
        let (per_track, heads, tracks) =
            if total >= 65535 * 16 * 63 { (255, 16, total / 255) } else { small(total) };
        let part = |value: u64| value.min(u64::from(u16::MAX));
        Self { cylinders: part(tracks / heads) as u16, heads: heads as u8, sectors: per_track as u8 }
    }

    /// The smallest geometry of that algorithm that describes at least so many sectors; the largest if none does.
    pub fn at_least(sectors: u64) -> Self {
        if sectors == 0 {
            return Self::default();
        }
        // Each of a few hundred steps adds at most a cylinder.
        let mut asked = sectors;
        loop {
            let chs = Self::at_most(asked);
            if chs.total() >= sectors || chs == Self::MAX {
                return chs;
            }
            asked += 1;
        }
    }
}

/// Sectors per track, heads and tracks of a disk that the smaller geometries describe.
fn small(total: u64) -> (u64, u64, u64) {
    let tracks = total / 17;
    let heads = tracks.div_ceil(1024).max(4);
    if tracks < heads * 1024 && heads <= 16 {
        return (17, heads, tracks);
    }
    let tracks = total / 31;
    if tracks < 16 * 1024 {
        return (31, 16, tracks);
    }
    (63, 16, total / 63)
}

/// Geometry and length in bytes of a new disk that is to have `size` bytes.
///
/// `None`: it is too large for the format.
pub fn rounded(size: u64) -> Option<(Chs, u64)> {
    let sectors = size.div_ceil(SECTOR);
    let chs = Chs::at_least(sectors);
    let total = if chs == Chs::MAX { sectors } else { chs.total() };
    (total <= SECTORS_MAX).then(|| (chs, total * SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_disks_are_as_long_as_the_references() {
        for (size, len) in [
            (0, 0),
            (1, 34816),
            (10 << 20, 10_514_432),
            (127 << 30, 136_365_219_840),
            (500 << 30, 500 << 30),
            (2040 << 30, 2040 << 30),
        ] {
            assert_eq!(rounded(size).map(|(_, len)| len), Some(len), "{size}");
        }
        assert_eq!(rounded(2041 << 30), None);
        assert_eq!(rounded(u64::MAX), None);
        assert_eq!(
            rounded(10 << 20).map(|(chs, _)| chs),
            Some(Chs { cylinders: 302, heads: 4, sectors: 17 })
        );
    }

    #[test]
    fn a_geometry_never_describes_less() {
        let mut sectors = 1;
        while sectors < SECTORS_MAX {
            let (_, len) = rounded(sectors * SECTOR).expect("it fits");
            assert!(len >= sectors * SECTOR && len < sectors * SECTOR * 2 + (1 << 20), "{sectors}");
            sectors = sectors * 9 / 8 + 7;
        }
    }
}
