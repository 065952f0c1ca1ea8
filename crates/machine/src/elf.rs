//! Just enough of ELF to load a program: the header, the loadable segments and the symbols of a 64-bit RISC-V
//! executable.

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
    const LOAD: u64 = 1;
    check_header(data)?;
    let number = |at: u64, len: usize| number(data, at, len);
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

/// The address that a symbol of this name has, if the file names it at all.
///
/// # Errors
/// When the file is cut off or for another machine.
pub fn symbol(data: &[u8], name: &str) -> Result<Option<u64>, ElfError> {
    const SYMBOLS: u64 = 2;
    const SYMBOL_BYTES: u64 = 24;
    check_header(data)?;
    let number = |at: u64, len: usize| number(data, at, len);
    let (table, entry_size, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    let section = |index: u64| {
        let at = index.checked_mul(entry_size).and_then(|at| table.checked_add(at));
        at.filter(|at| *at < 1 << 48).ok_or(ElfError::Truncated)
    };
    for index in 0..count {
        let at = section(index)?;
        if number(at + 4, 4)? != SYMBOLS {
            continue;
        }
        let strings = number(section(number(at + 40, 4)?)? + 24, 8)?;
        let bytes = content(data, number(at + 24, 8)?, number(at + 32, 8)?)?;
        for symbol in bytes.chunks_exact(SYMBOL_BYTES as usize) {
            let field = |from: usize, len: usize| number_of(&symbol[from..from + len]);
            let text = content(data, strings.saturating_add(field(0, 4)), name.len() as u64 + 1);
            if text.is_ok_and(|text| text.strip_suffix(b"\0") == Some(name.as_bytes())) {
                return Ok(Some(field(8, 8)));
            }
        }
        // There is at most one table of symbols.
        break;
    }
    Ok(None)
}

fn check_header(data: &[u8]) -> Result<(), ElfError> {
    const RISCV: u64 = 243;
    // Class 64-bit, little-endian.
    if number(data, 0, 6)? != u64::from_le_bytes(*b"\x7fELF\x02\x01\0\0") || number(data, 18, 2)? != RISCV {
        return Err(ElfError::Foreign);
    }
    Ok(())
}

/// A little-endian number of at most eight bytes.
fn number(data: &[u8], at: u64, len: usize) -> Result<u64, ElfError> {
    content(data, at, len as u64).map(number_of)
}

fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn content(data: &[u8], at: u64, len: u64) -> Result<&[u8], ElfError> {
    let end = at.checked_add(len).ok_or(ElfError::Truncated)?;
    let range = usize::try_from(at).ok().zip(usize::try_from(end).ok());
    range.and_then(|(at, end)| data.get(at..end)).ok_or(ElfError::Truncated)
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

    /// A file with a table of symbols and a table of their names.
    fn with_symbols(names: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = file(243, 4, 9);
        let (mut table, mut strings) = (vec![0; 24], vec![0u8]);
        for (name, value) in names {
            table.extend((strings.len() as u32).to_le_bytes());
            table.extend([0; 4]);
            table.extend(value.to_le_bytes());
            table.extend([0; 8]);
            strings.extend(name.bytes().chain([0]));
        }
        let places = [(2u32, table), (3, strings)].map(|(kind, content)| {
            let place = (kind, bytes.len() as u64, content.len() as u64);
            bytes.extend(content);
            place
        });
        let sections = bytes.len() as u64;
        bytes[40..48].copy_from_slice(&sections.to_le_bytes());
        (bytes[58], bytes[60]) = (64, 2);
        for (kind, at, len) in places {
            let mut section = [0; 64];
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&at.to_le_bytes());
            section[32..40].copy_from_slice(&len.to_le_bytes());
            section[40] = 1;
            bytes.extend(section);
        }
        bytes
    }

    #[test]
    fn symbols_are_found_by_their_whole_name() {
        let bytes = with_symbols(&[("tohost_not", 1), ("tohost", 0x8000_1000), ("fromhost", 2)]);
        assert_eq!(symbol(&bytes, "tohost"), Ok(Some(0x8000_1000)));
        assert_eq!(symbol(&bytes, "host"), Ok(None));
        assert_eq!(symbol(&file(243, 4, 9), "tohost"), Ok(None), "a stripped file");
        assert_eq!(symbol(&bytes[..bytes.len() - 70], "tohost"), Err(ElfError::Truncated));
        assert_eq!(symbol(&file(62, 4, 4), "tohost"), Err(ElfError::Foreign));
    }
}
