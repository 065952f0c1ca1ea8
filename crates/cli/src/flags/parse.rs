//! The parser over the tables, with the habits of `getopt_long`.
//!
//! Options and operands may come in any order, `--` ends the options, values may be joined (`-fraw`,
//! `--format=raw`) or follow, short options cluster, and a long name may be shortened while it stays
//! unambiguous.

use super::{Command, Flag, State, Value};
use crate::face::Face;

/// Where operands may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Anywhere among the options.
    Permute,
    /// The first operand ends the options: what follows belongs to a subcommand.
    StopAtOperand,
}

/// What was given on a command line.
#[derive(Debug, Default)]
pub struct Args {
    flags: Vec<(&'static Flag, Option<String>)>,
    /// The operands in order.
    pub operands: Vec<String>,
}

impl Args {
    /// What a command without options is given: whatever it looks like.
    pub fn of_operands(operands: Vec<String>) -> Self {
        Self { flags: Vec::new(), operands }
    }

    /// Whether `flag` was given.
    pub fn has(&self, flag: &'static Flag) -> bool {
        self.flags.iter().any(|(f, _)| std::ptr::eq(*f, flag))
    }

    /// The value of the last `flag` given.
    pub fn value(&self, flag: &'static Flag) -> Option<&str> {
        self.flags.iter().rev().find(|(f, _)| std::ptr::eq(*f, flag)).and_then(|(_, value)| value.as_deref())
    }

    /// The values of all `flag`s given, in order.
    pub fn values(&self, flag: &'static Flag) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(f, _)| std::ptr::eq(*f, flag)).filter_map(|(_, v)| v.as_deref())
    }

    /// All flags with their values, in the order given: some checks are made in that order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Flag, &str)> {
        self.flags.iter().map(|(flag, value)| (*flag, value.as_deref().unwrap_or("")))
    }
}

/// Why a command line was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// No such short option; with the argument it stood in.
    UnknownShort(char, String),
    /// No such long option.
    UnknownLong(String),
    /// The beginning of several long names.
    Ambiguous(String, Vec<&'static str>),
    /// A short option without its value.
    MissingShort(char, String),
    /// A long option without its value.
    MissingLong(&'static str, String),
    /// A value for a long option that takes none.
    UnexpectedValue(&'static str, String),
    /// Known, and not there yet.
    NotAvailable(String),
}

impl ParseError {
    /// The message as the C library words it.
    pub fn text(&self) -> String {
        match self {
            Self::UnknownShort(c, _) => format!("invalid option -- '{c}'"),
            Self::UnknownLong(arg) => format!("unrecognized option '{arg}'"),
            Self::Ambiguous(arg, names) => {
                let names: String = names.iter().map(|name| format!(" '--{name}'")).collect();
                format!("option '{arg}' is ambiguous; possibilities:{names}")
            }
            Self::MissingShort(c, _) => format!("option requires an argument -- '{c}'"),
            Self::MissingLong(name, _) => format!("option '--{name}' requires an argument"),
            Self::UnexpectedValue(name, _) => format!("option '--{name}' doesn't allow an argument"),
            Self::NotAvailable(name) => {
                format!("option '{name}' is not available in this version of cowbell")
            }
        }
    }
}

/// Parses what follows the command's name.
///
/// # Errors
/// The first argument that is not understood.
pub fn parse(
    command: &'static Command,
    face: Face,
    order: Order,
    args: impl IntoIterator<Item = String>,
) -> Result<Args, ParseError> {
    let mut parsed = Args::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            parsed.operands.extend(args);
            break;
        }
        if let Some(long) = arg.strip_prefix("--") {
            let found = take_long(command, face, long, &arg, &mut args)?;
            push(&mut parsed, found)?;
        } else if arg.len() > 1 && arg.starts_with('-') {
            take_cluster(command, face, &arg, &mut args, &mut parsed)?;
        } else {
            parsed.operands.push(arg);
            if order == Order::StopAtOperand {
                parsed.operands.extend(args);
                break;
            }
        }
    }
    Ok(parsed)
}

type Found = (&'static Flag, Option<String>);

fn push(parsed: &mut Args, found: Found) -> Result<(), ParseError> {
    if found.0.state == State::Refused {
        return Err(ParseError::NotAvailable(found.0.display()));
    }
    parsed.flags.push(found);
    Ok(())
}

/// Whether the flag exists under this name of the program.
pub fn offered(flag: &Flag, face: Face) -> bool {
    flag.state != State::CowbellOnly || face == Face::Cowbell
}

fn take_long(
    command: &'static Command,
    face: Face,
    long: &str,
    arg: &str,
    rest: &mut impl Iterator<Item = String>,
) -> Result<Found, ParseError> {
    let (name, joined) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (long, None),
    };
    let (flag, name) = find_long(command, face, name, arg)?;
    match (flag.value, joined) {
        (Value::None | Value::Form(_), None) => Ok((flag, None)),
        (Value::Form(_), Some(form)) if face == Face::Cowbell => Ok((flag, Some(form))),
        (Value::Form(_), Some(_)) => Err(ParseError::UnexpectedValue(name, arg.to_owned())),
        (Value::None, Some(_)) => Err(ParseError::UnexpectedValue(name, arg.to_owned())),
        (_, Some(value)) => Ok((flag, Some(value))),
        (_, None) => match rest.next() {
            Some(value) => Ok((flag, Some(value))),
            None => Err(ParseError::MissingLong(name, arg.to_owned())),
        },
    }
}

fn find_long(
    command: &'static Command,
    face: Face,
    name: &str,
    arg: &str,
) -> Result<(&'static Flag, &'static str), ParseError> {
    let names = || {
        let flags = command.flags.iter().copied().filter(move |flag| offered(flag, face));
        flags.flat_map(|flag| flag.long.iter().map(move |long| (flag, *long)))
    };
    if let Some(exact) = names().find(|(_, long)| *long == name) {
        return Ok(exact);
    }
    let matching: Vec<_> = names().filter(|(_, long)| long.starts_with(name)).collect();
    match matching.as_slice() {
        [] => Err(ParseError::UnknownLong(arg.to_owned())),
        // Several names of one flag are not ambiguous.
        [first, others @ ..] if others.iter().all(|(flag, _)| std::ptr::eq(*flag, first.0)) => Ok(*first),
        _ => Err(ParseError::Ambiguous(arg.to_owned(), matching.iter().map(|(_, long)| *long).collect())),
    }
}

fn take_cluster(
    command: &'static Command,
    face: Face,
    arg: &str,
    rest: &mut impl Iterator<Item = String>,
    parsed: &mut Args,
) -> Result<(), ParseError> {
    for (at, letter) in arg.char_indices().skip(1) {
        let known = |flag: &&&'static Flag| {
            flag.short != 0 && char::from(flag.short) == letter && offered(flag, face)
        };
        let Some(flag) = command.flags.iter().find(known).copied() else {
            return Err(ParseError::UnknownShort(letter, arg.to_owned()));
        };
        if flag.value.name().is_none() {
            push(parsed, (flag, None))?;
            continue;
        }
        let joined = &arg[at + letter.len_utf8()..];
        let value = if joined.is_empty() { rest.next() } else { Some(joined.to_owned()) };
        let Some(value) = value else {
            return Err(ParseError::MissingShort(letter, arg.to_owned()));
        };
        return push(parsed, (flag, Some(value)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::img;

    fn convert(args: &[&str]) -> Result<Args, ParseError> {
        parse(&img::CONVERT, Face::QemuImg, Order::Permute, args.iter().map(|s| (*s).to_owned()))
    }

    #[test]
    fn every_spelling_of_a_value_is_understood() {
        let spellings: [&[&str]; 6] = [
            &["a", "-f", "raw", "b"],
            &["-fraw", "a", "b"],
            &["-pfraw", "a", "b"],
            &["a", "b", "--source-format", "raw"],
            &["a", "b", "--source-format=raw"],
            &["a", "b", "--source-f=raw"],
        ];
        for args in spellings {
            let args = convert(args).expect("understood");
            assert_eq!(args.value(&img::SOURCE_FORMAT), Some("raw"));
            assert_eq!(args.operands, ["a", "b"]);
        }
    }

    #[test]
    fn a_form_follows_an_equals_sign_and_only_under_our_own_name() {
        let parsed = |face, args: &[&str]| {
            parse(&img::CONVERT, face, Order::Permute, args.iter().map(|s| (*s).to_owned()))
        };
        let args = parsed(Face::Cowbell, &["--progress=json", "a"]).expect("understood");
        assert_eq!((args.value(&img::PROGRESS), args.operands.len()), (Some("json"), 1));
        let args = parsed(Face::Cowbell, &["--progress", "json", "-p"]).expect("understood");
        assert_eq!((args.value(&img::PROGRESS), args.operands.len()), (None, 1));
        let error = parsed(Face::QemuImg, &["--progress=json"]).expect_err("not there");
        assert_eq!(error.text(), "option '--progress' doesn't allow an argument");
    }

    #[test]
    fn two_dashes_end_the_options() {
        let args = convert(&["-p", "--", "-f", "raw"]).expect("understood");
        assert_eq!(args.operands, ["-f", "raw"]);
        assert!(args.has(&img::PROGRESS) && !args.has(&img::SOURCE_FORMAT));
    }

    #[test]
    fn mistakes_are_worded_as_the_reference_words_them() {
        let text = |args: &[&str]| convert(args).expect_err("not understood").text();
        assert_eq!(text(&["-z"]), "invalid option -- 'z'");
        assert_eq!(text(&["--nothing"]), "unrecognized option '--nothing'");
        assert_eq!(
            text(&["--source"]),
            "option '--source' is ambiguous; possibilities: '--source-format' '--source-image-opts' '--source-cache' '--source-snapshot'"
        );
        assert_eq!(text(&["-f"]), "option requires an argument -- 'f'");
        assert_eq!(text(&["--policy=none"]), "unrecognized option '--policy=none'");
    }

    #[test]
    fn the_last_value_counts_and_all_are_kept() {
        let args = convert(&["-o", "a=1", "-f", "raw", "-f", "qcow2", "-o", "b=2"]).expect("understood");
        assert_eq!(args.value(&img::SOURCE_FORMAT), Some("qcow2"));
        assert_eq!(args.values(&img::OPTIONS).collect::<Vec<_>>(), ["a=1", "b=2"]);
    }
}
