//! What a person types to the program rather than to the guest: the escape character, and one letter.
//!
//! ```text
//!   C-a x   end the run          C-a h   show this help
//!   C-a C-a send C-a
//! ```

/// The escape character: C-a.
pub const ESCAPE: u8 = 0x01;

/// What is shown for `C-a h`.
pub const HELP: &str =
    "\r\nC-a h    print this help\r\nC-a x    end the run\r\nC-a C-a  send C-a to the guest\r\n";

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the run.
    Quit,
    /// Show the help.
    Help,
}

/// Takes the escapes out of what is typed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Escapes {
    /// The escape character was typed, and nothing since.
    begun: bool,
}

impl Escapes {
    /// What goes to the guest, and what was asked for, in order.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let mut through = Vec::with_capacity(typed.len());
        let mut commands = Vec::new();
        for &byte in typed {
            if !std::mem::take(&mut self.begun) {
                match byte {
                    ESCAPE => self.begun = true,
                    _ => through.push(byte),
                }
                continue;
            }
            match byte {
                b'x' | b'X' => commands.push(Command::Quit),
                b'h' | b'H' | b'?' => commands.push(Command::Help),
                ESCAPE => through.push(ESCAPE),
                // Nothing we know: the guest gets neither, as with the reference.
                _ => {}
            }
        }
        (through, commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(typed: &[&[u8]], expect: (&[u8], &[Command])) {
        let mut escapes = Escapes::default();
        let (mut through, mut commands) = (Vec::new(), Vec::new());
        for piece in typed {
            let (bytes, more) = escapes.take(piece);
            through.extend(bytes);
            commands.extend(more);
        }
        assert_eq!((through.as_slice(), commands.as_slice()), expect);
    }

    #[test]
    fn escapes_are_taken_out_wherever_the_pieces_end() {
        check(&[b"ls\r"], (b"ls\r", &[]));
        check(&[b"a\x01xb"], (b"ab", &[Command::Quit]));
        check(&[b"a\x01", b"hb"], (b"ab", &[Command::Help]));
        check(&[b"\x01\x01x"], (b"\x01x", &[]));
        check(&[b"\x01zq"], (b"q", &[]));
    }
}
