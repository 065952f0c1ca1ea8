//! Just enough of ELF to load a program: the header and the loadable segments of a 64-bit RISC-V executable.

/// Why a file is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It ends before something it promises.
    #[error("the file is cut off")]
    Truncated,
    /// It is for something else.
    #[error("not a 64-bit little-endian RISC-V executable")]
    Foreign,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// Where it starts.
    pub entry: u64,
    /// What goes into memory.
    pub segments: Vec<Segment<'a>>,
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Physical address.
    pub address: u64,
    /// The bytes from the file.
    pub bytes: &'a [u8],
    /// Bytes in memory, at least as many; the rest is zero.
    pub size: u64,
}

/// Reads the header and the program headers.
///
/// # Errors
/// When the file is cut off or for another machine.
pub fn parse(data: &[u8]) -> Result<Program<'_>, ElfError> {
    let number = |at: u64, len: usize| -> Result<u64, ElfError> {
        let at = usize::try_from(at).map_err(|_| ElfError::Truncated)?;
        let bytes = at.checked_add(len).and_then(|end| data.get(at..end)).ok_or(ElfError::Truncated)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    const RISCV: u64 = 243;
    const LOAD: u64 = 1;
    // Class 64-bit, little-endian.
    if number(0, 6)? != u64::from_le_bytes(*b"\x7fELF\x02\x01\0\0") || number(18, 2)? != RISCV {
        return Err(ElfError::Foreign);
    }
    let (entry, table) = (number(24, 8)?, number(32, 8)?);
    let (entry_size, count) = (number(54, 2)?, number(56, 2)?);
    let mut segments = Vec::new();
    for index in 0..count {
        let at =
            table.checked_add(index * entry_size).filter(|at| *at < 1 << 48).ok_or(ElfError::Truncated)?;
        if number(at, 4)? != LOAD {
            continue;
        }
        let (offset, address) = (number(at + 8, 8)?, number(at + 24, 8)?);
        let (in_file, size) = (number(at + 32, 8)?, number(at + 40, 8)?);
        let end = offset.checked_add(in_file).ok_or(ElfError::Truncated)?;
        let bytes = data.get(offset as usize..end as usize).ok_or(ElfError::Truncated)?;
        if size < in_file {
            return Err(ElfError::Truncated);
        }
        segments.push(Segment { address, bytes, size });
    }
    Ok(Program { entry, segments })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(machine: u16, in_file: u64, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[24] = 0x99;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = 1;
        bytes[64 + 8] = 120;
        bytes[64 + 24..64 + 32].copy_from_slice(&0x8000_0000u64.to_le_bytes());
        bytes[64 + 32..64 + 40].copy_from_slice(&in_file.to_le_bytes());
        bytes[64 + 40..64 + 48].copy_from_slice(&size.to_le_bytes());
        bytes.extend(b"code");
        bytes
    }

    #[track_caller]
    fn check(file: &[u8], expect: Result<(u64, &[u8], u64), ElfError>) {
        let got = parse(file).map(|program| {
            let segment = program.segments[0];
            (segment.address, segment.bytes, segment.size)
        });
        assert_eq!(got, expect);
    }

    #[test]
    fn segments_are_checked_against_the_file() {
        check(&file(243, 4, 9), Ok((0x8000_0000, b"code", 9)));
        check(&file(243, 5, 9), Err(ElfError::Truncated));
        check(&file(243, 4, 3), Err(ElfError::Truncated));
        check(&file(62, 4, 4), Err(ElfError::Foreign));
        check(&file(243, u64::MAX, u64::MAX), Err(ElfError::Truncated));
        check(&file(243, 4, 4)[..100], Err(ElfError::Truncated));
    }
}
