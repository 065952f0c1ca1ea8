//! Where the lines of `io` come from: a script on standard input, or a person who edits them, with history and
//! completion of commands, options and file names.

use std::io::{BufRead, IsTerminal};

use anyhow::Result;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Editor, Helper};

use super::session::Session;
use crate::face::Face;
use crate::flags::io::{IO_COMMANDS, IoCommand};
use crate::flags::parse::offered;
use crate::flags::{Flag, State};

/// The prompt, printed and flushed before each line is read, also when nobody sees it: scripts wait for it.
const PROMPT: &str = "qemu-io> ";

/// The commands' source.
pub(super) enum Lines {
    /// Standard input as it comes.
    Script,
    /// A terminal on both ends.
    Person(Box<Editor<Words, DefaultHistory>>),
}

impl Lines {
    /// A person is there when both standard input and output are terminals.
    pub fn new(face: Face) -> Result<Self> {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Ok(Self::Script);
        }
        let config = Config::builder().completion_type(CompletionType::List).auto_add_history(true).build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Words { face, files: FilenameCompleter::new() }));
        Ok(Self::Person(Box::new(editor)))
    }

    /// The next line without its end; `None` after the last.
    pub fn next(&mut self, session: &Session<'_>) -> Result<Option<String>> {
        // Requests in flight stand still meanwhile, unless the kernel or the pool has them: a person types, a
        // script does not wait.
        match self {
            Self::Script => {
                session.put(PROMPT);
                session.flush();
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line)?;
                line.truncate(line.trim_end_matches(['\n', '\r']).len());
                Ok((read != 0).then_some(line))
            }
            Self::Person(editor) => {
                session.flush();
                loop {
                    match editor.readline(PROMPT) {
                        Ok(line) => return Ok(Some(line)),
                        // As in a shell: the line is given up, not the program.
                        Err(ReadlineError::Interrupted) => {}
                        Err(ReadlineError::Eof) => return Ok(None),
                        Err(e) => return Err(e.into()),
                    }
                }
            }
        }
    }
}

/// Completes what a person types.
pub(super) struct Words {
    face: Face,
    files: FilenameCompleter,
}

impl Words {
    fn commands(&self) -> impl Iterator<Item = &'static IoCommand> {
        let face = self.face;
        IO_COMMANDS
            .iter()
            .filter(move |command| command.is_offered(face) && command.command.state != State::Refused)
    }

    /// What may stand at the end of `before`, which begins there.
    fn candidates(&self, before: &str) -> Vec<String> {
        let word = before.rsplit(' ').next().unwrap_or_default();
        let mut earlier = before[..before.len() - word.len()].split_whitespace();
        let names = self.commands().map(|command| command.command.name.to_owned());
        let mut found: Vec<String> = match earlier.next() {
            None => names.collect(),
            Some("help") => names.collect(),
            Some(name) => {
                let flags =
                    self.commands().find(|c| c.command.name == name).map_or(&[][..], |c| c.command.flags);
                flags
                    .iter()
                    .filter(|flag| offered(flag, self.face))
                    .flat_map(|flag| spellings(flag))
                    .collect()
            }
        };
        found.retain(|candidate| candidate.starts_with(word));
        found.sort();
        found
    }
}

/// The ways to write an option.
fn spellings(flag: &Flag) -> impl Iterator<Item = String> {
    let short = (flag.short != 0).then(|| format!("-{}", char::from(flag.short)));
    short.into_iter().chain(flag.long.iter().map(|long| format!("--{long}")))
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..pos];
        let start = before.rfind(' ').map_or(0, |at| at + 1);
        if before.split_whitespace().next() == Some("open") && start > 0 && !before[start..].starts_with('-')
        {
            return self.files.complete_path(line, pos);
        }
        let pair = |word: String| Pair { display: word.clone(), replacement: word + " " };
        Ok((start, self.candidates(before).into_iter().map(pair).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}

impl Validator for Words {}

impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(before: &str) -> Vec<String> {
        Words { face: Face::QemuIo, files: FilenameCompleter::new() }.candidates(before)
    }

    #[test]
    fn the_first_word_is_a_command() {
        assert_eq!(words("rea"), ["read", "readv"]);
        assert_eq!(words("help aio_f"), ["aio_flush"]);
        assert_eq!(words("frob"), [""; 0]);
    }

    #[test]
    fn later_words_are_options_of_the_command() {
        assert!(words("read -").contains(&"-P".to_owned()));
        assert!(!words("flush -").contains(&"-P".to_owned()));
    }

    #[test]
    fn what_only_cowbell_has_is_not_offered_under_another_name() {
        assert_eq!(words("blkdebug_s"), [""; 0]);
    }
}
