//! What every command gets: the name it was called by, the drivers, the policy, and how to report.

use std::fmt;
use std::sync::Arc;

use anyhow::{Result, bail};
use cowbell_block::context::OpenContext;
use cowbell_block::policy::Policy;
use cowbell_block::registry::Registry;
use cowbell_block::secrets::Secrets;
use cowbell_block::{Graph, ThrottleGroups, Trace};

use crate::face::Face;
use crate::flags::parse::ParseError;
use crate::flags::{Args, Command, State, help, img};
use crate::object;
use crate::out::complain;
use crate::out::{Out, Printer};
use crate::trace::{self, Traced};

/// The surroundings of one command.
pub struct Context {
    /// Which tool this is.
    pub face: Face,
    /// The prefix of messages: the last component of `argv[0]`.
    pub name: String,
    /// How the user calls the command, for help texts and hints: `qemu-img create`, with the directory if it was named.
    pub path: String,
    /// What images may make us open.
    pub policy: Policy,
    /// The secrets that the user defined.
    pub secrets: Secrets,
    /// The throttle groups that the user defined.
    pub throttle_groups: ThrottleGroups,
    /// Standard output, where commands and nodes print to it in turn.
    pub printer: Printer,
    /// Where events are told.
    pub trace: Option<Trace>,
}

/// A mistake on the command line: reported with a hint where help is to be found.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An option that was not understood: reported with the command's name, and the same hint.
#[derive(Debug)]
pub struct BadOption(pub ParseError);

impl fmt::Display for BadOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text())
    }
}

impl std::error::Error for BadOption {}

/// Reported already: only the status is left.
#[derive(Debug)]
pub struct Reported;

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error was reported")
    }
}

impl std::error::Error for Reported {}

/// A [`Usage`] error.
pub fn usage(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(text.into()))
}

/// The words for a command that is known and not there yet.
pub fn refusal(command: &str) -> String {
    format!("{command}: not available in this version of cowbell")
}

impl Context {
    /// The surroundings of the tool of this name.
    ///
    /// # Errors
    /// `COWBELL_POLICY` names no policy.
    pub fn new(face: Face, name: String, path: String) -> Result<Self> {
        let standard = match face {
            Face::Cowbell => Policy::confine(),
            Face::QemuImg | Face::QemuIo => Policy::trust(),
        };
        let policy = match std::env::var("COWBELL_POLICY") {
            Ok(word) if !word.is_empty() => match word.parse() {
                Ok(policy) => policy,
                Err(e) => bail!("COWBELL_POLICY: {e}"),
            },
            _ => standard,
        };
        let (secrets, throttle_groups) = (Secrets::default(), ThrottleGroups::default());
        Ok(Self { face, name, path, policy, secrets, throttle_groups, printer: Printer::new(), trace: None })
    }

    /// Applies `--policy`.
    ///
    /// # Errors
    /// The value names no policy.
    pub fn take_policy(&mut self, args: &Args) -> Result<()> {
        if let Some(word) = args.value(&img::POLICY) {
            self.policy = word.parse()?;
        }
        Ok(())
    }

    /// Applies `-T`. `true`: help was asked for and printed.
    ///
    /// # Errors
    /// An option that does not exist, or a file that cannot be used.
    pub fn take_trace(&mut self, args: &Args) -> Result<bool> {
        match trace::take(self, args)? {
            Traced::Help => Ok(true),
            Traced::Log(log) => {
                self.trace = log;
                Ok(false)
            }
        }
    }

    /// Writes what events told until now.
    pub fn flush_trace(&self) {
        if let Some(trace) = &self.trace {
            trace.flush();
        }
    }

    /// Defines the objects that `--object` gives, in their order. `true`: help was asked for and printed.
    ///
    /// # Errors
    /// The first definition that is not understood.
    pub fn take_objects(&mut self, args: &Args) -> Result<bool> {
        for definition in args.values(&img::OBJECT) {
            if let Some(text) = object::help(definition) {
                Out::new().put(&text);
                return Ok(true);
            }
            object::define(definition, &mut self.secrets, &mut self.throttle_groups)?;
        }
        Ok(false)
    }

    /// What images are opened with, as far as it is the same for all of them.
    pub fn open_context(&self) -> OpenContext {
        let mut context = OpenContext::new(self.registry());
        context.policy = self.policy;
        context.spawn = Some(cowbell_host::workers());
        context.secrets = self.secrets.clone();
        context.throttle_groups = self.throttle_groups.clone();
        // Nodes of one tree may refer to each other by name.
        context.graph = Some(Graph::new());
        context.outside = Some(cowbell_host::outside());
        context.time = Some(cowbell_host::time());
        context.trace = self.trace.clone();
        context
    }

    /// The drivers of this program. Made for each command: a handful of pointers.
    pub fn registry(&self) -> Arc<Registry> {
        crate::drivers::registry(&self.printer)
    }

    /// Prints `message` with the program's name before it.
    pub fn report(&self, message: impl fmt::Display) {
        self.flush_trace();
        complain(format_args!("{}: {message}", self.name));
    }

    /// Warns of an option that is given without a value, as the reference does, and says what it stands for.
    pub fn short_form(&self, item: &str) -> (String, &'static str) {
        let (key, value) = match item.strip_prefix("no") {
            Some(key) => (key, "off"),
            None => (item, "on"),
        };
        self.report(format_args!("warning: short-form boolean option '{item}' deprecated"));
        complain(format_args!("Please use {key}={value} instead"));
        (key.to_owned(), value)
    }

    /// Reports what ended a command. The caller ends with a status of its own.
    pub fn report_error(&self, error: &anyhow::Error) {
        if error.is::<Reported>() {
            return;
        }
        match error.is::<BadOption>() {
            true => complain(format_args!("{}: {error}", self.path)),
            false => self.report(error),
        }
        if error.is::<Usage>() || error.is::<BadOption>() {
            complain(self.hint());
        }
    }

    /// Where help is to be found.
    pub fn hint(&self) -> String {
        format!("Try '{} --help' for more info", self.path)
    }

    /// The text of `--help` for `command`.
    pub fn help(&self, command: &Command) -> String {
        help::text(command, &self.path, self.face)
    }

    /// Fails if `command` is known and not there yet.
    ///
    /// # Errors
    /// Names the command.
    pub fn require_ready(&self, command: &Command) -> Result<()> {
        if command.state == State::Refused {
            bail!("{}", refusal(command.name));
        }
        Ok(())
    }
}
