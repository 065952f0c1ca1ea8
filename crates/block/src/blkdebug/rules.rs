//! The rules of `blkdebug`: a small state machine that knows no I/O.
//!
//! ```text
//!   event ──▶ rules of this event, whose state is 0 or the current one, fire
//!               set-state   the new state, in force after all rules of the event were looked at
//!               inject      together they replace the set of active rules
//!               suspend     once; the announcing request waits
//!   I/O   ──▶ active rules in the order of definition; the first that matches decides
//! ```
//!
//! An event without a firing inject rule leaves the active set as it is: active rules go on failing what they
//! match, until others take their place.

use serde_json::{Value, json};

use super::words::{errno, iotype, number, sector, switch};
use crate::error::ErrorKind;
use crate::event::DebugEvent;
use crate::request::Operation;

/// The state in which every engine starts.
const FIRST_STATE: u64 = 1;
/// Bytes in the unit of `sector`.
pub(super) const SECTOR: u64 = 512;
/// `EIO`: what rules inject that name no other error.
const ERRNO_DEFAULT: i32 = 5;

/// A rule that cannot be understood. The words are the reference's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// `event` is what every rule needs.
    #[error("Missing event name for rule")]
    NoEvent,
    /// No such event, or no such kind of request.
    #[error("invalid parameter value: {0}")]
    Value(String),
    /// A key that rules of this kind do not have, in a file.
    #[error("Invalid parameter '{0}'")]
    Key(String),
    /// The same, in options.
    #[error("[{section}] section doesn't support the option '{key}'")]
    Option {
        /// `inject-error` or `set-state`.
        section: &'static str,
        /// The key.
        key: String,
    },
    /// No number where one is needed.
    #[error("Parameter '{0}' expects a number")]
    Number(&'static str),
    /// Neither on nor off.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    Switch(&'static str),
    /// No error of this name or number.
    #[error("Parameter 'errno' expects a number or the name of an error, not '{0}'")]
    Errno(String),
}

/// What a section of rules is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `inject-error`.
    Inject,
    /// `set-state`.
    SetState,
}

impl Section {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inject, Self::SetState];

    /// Its name in files and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inject => "inject-error",
            Self::SetState => "set-state",
        }
    }

    /// Whether its rules have this key.
    pub fn has(self, key: &str) -> bool {
        match self {
            Self::Inject => {
                ["event", "state", "iotype", "errno", "sector", "once", "immediately"].contains(&key)
            }
            Self::SetState => ["event", "state", "new_state"].contains(&key),
        }
    }
}

/// The kinds of requests that errors are injected into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoType {
    /// `read`.
    Read,
    /// `write`.
    Write,
    /// `write-zeroes`.
    WriteZeroes,
    /// `discard`.
    Discard,
    /// `flush`.
    Flush,
    /// `block-status`.
    BlockStatus,
}

impl IoType {
    pub(super) const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::WriteZeroes, Self::Discard, Self::Flush, Self::BlockStatus];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::BlockStatus => "block-status",
        }
    }

    /// The kind of a request; `None` for those that rules do not concern.
    pub fn of(op: &Operation) -> Option<Self> {
        Some(match op {
            Operation::Read | Operation::VmStateRead => Self::Read,
            Operation::Write | Operation::VmStateWrite => Self::Write,
            Operation::WriteZeroes => Self::WriteZeroes,
            Operation::Discard => Self::Discard,
            Operation::Flush => Self::Flush,
            Operation::Status => Self::BlockStatus,
            Operation::CopyFrom { .. } | Operation::Truncate(_) => return None,
        })
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    event: DebugEvent,
    /// 0: any.
    state: u64,
    action: Action,
    /// How often it fired, or, if it injects, how often it decided about a request.
    hits: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Inject(Inject),
    SetState(u64),
    Suspend(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inject {
    /// `None`: all but block-status.
    iotype: Option<IoType>,
    /// 0 decides that there is no error.
    errno: i32,
    /// Byte that a request must cover; `None`: any request.
    offset: Option<u64>,
    once: bool,
    immediately: bool,
}

impl Inject {
    fn matches(&self, iotype: IoType, offset: u64, len: u64) -> bool {
        let covers = |at: u64| at >= offset && at - offset < len;
        let kind = match self.iotype {
            Some(own) => own == iotype,
            None => iotype != IoType::BlockStatus,
        };
        // A flush has no range, so a rule with a sector never matches one.
        kind && self.offset.is_none_or(|at| iotype != IoType::Flush && covers(at))
    }
}

/// An error to be injected into a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    /// The host's code for it.
    pub errno: i32,
    /// Whether the request fails before anybody else gets a turn.
    pub immediately: bool,
}

impl Rule {
    /// The rule that these keys and values make up; keys were looked at by [`Section::has`].
    ///
    /// # Errors
    /// Names the value that is none.
    pub fn new(section: Section, pairs: &[(String, String)]) -> Result<Self, RuleError> {
        let get = |key: &str| pairs.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let event = get("event").ok_or(RuleError::NoEvent)?;
        let state = number(get("state"), "state")?.unwrap_or(0);
        let action = match section {
            Section::SetState => Action::SetState(number(get("new_state"), "new_state")?.unwrap_or(0)),
            Section::Inject => Action::Inject(Inject {
                errno: get("errno").map_or(Ok(ERRNO_DEFAULT), errno)?,
                offset: sector(get("sector"))?,
                once: switch(get("once"), "once")?,
                immediately: switch(get("immediately"), "immediately")?,
                iotype: get("iotype").map(iotype).transpose()?,
            }),
        };
        let event = DebugEvent::from_name(event).ok_or_else(|| RuleError::Value(event.to_owned()))?;
        Ok(Self { event, state, action, hits: 0 })
    }

    fn to_json(&self) -> Value {
        let mut value = json!({ "event": self.event.name(), "state": self.state, "hits": self.hits });
        let more = match &self.action {
            Action::Inject(inject) => json!({
                "action": Section::Inject.name(),
                "errno": inject.errno,
                "iotype": inject.iotype.map(IoType::name),
                "sector": inject.offset.map(|at| at / SECTOR),
                "once": inject.once,
                "immediately": inject.immediately,
            }),
            Action::SetState(new) => json!({ "action": Section::SetState.name(), "new-state": new }),
            Action::Suspend(tag) => json!({ "action": "suspend", "tag": tag }),
        };
        if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
            value.extend(more);
        }
        value
    }
}

/// What an event led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// Tags of the suspensions that the announcing request has to wait for.
    pub suspended: Vec<String>,
}

/// Rules, the state, and what is active.
#[derive(Debug, Default)]
pub struct Engine {
    state: u64,
    /// In the order of definition, with numbers that stay the same.
    rules: Vec<(u64, Rule)>,
    /// Numbers of active rules, in the order of definition.
    active: Vec<u64>,
    next: u64,
}

impl Engine {
    /// An engine in its first state.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut engine = Self { state: FIRST_STATE, ..Self::default() };
        rules.into_iter().for_each(|rule| engine.add(rule));
        engine
    }

    fn add(&mut self, rule: Rule) {
        self.rules.push((self.next, rule));
        self.next += 1;
    }

    /// Takes an event.
    pub fn event(&mut self, event: DebugEvent) -> Fired {
        let mut fired = Fired::default();
        let mut new_state = self.state;
        let mut injecting = Vec::new();
        let mut spent = Vec::new();
        // The reference looks at the youngest rule first, so that of several new states the oldest rule's counts.
        for (id, rule) in self.rules.iter_mut().rev() {
            if rule.event != event || (rule.state != 0 && rule.state != self.state) {
                continue;
            }
            match &rule.action {
                Action::Inject(_) => injecting.push(*id),
                Action::SetState(state) => {
                    new_state = *state;
                    rule.hits += 1;
                }
                Action::Suspend(tag) => {
                    fired.suspended.push(tag.clone());
                    spent.push(*id);
                }
            }
        }
        if !injecting.is_empty() {
            injecting.reverse();
            self.active = injecting;
        }
        spent.into_iter().for_each(|id| self.remove(id));
        self.state = new_state;
        fired
    }

    /// The error for a request, if one is to be injected.
    pub fn check(&mut self, iotype: IoType, offset: u64, len: u64) -> Option<Injected> {
        let matching = self.active.iter().copied().find_map(|id| {
            let (_, rule) = self.rules.iter().find(|(own, _)| *own == id)?;
            match rule.action {
                Action::Inject(inject) if inject.matches(iotype, offset, len) => Some((id, inject)),
                _ => None,
            }
        });
        let (id, inject) = matching?;
        if let Some((_, rule)) = self.rules.iter_mut().find(|(own, _)| *own == id) {
            rule.hits += 1;
        }
        if inject.errno == 0 {
            return None;
        }
        if inject.once {
            self.remove(id);
        }
        Some(Injected { errno: inject.errno, immediately: inject.immediately })
    }

    /// Suspends the next request that announces this event.
    ///
    /// # Errors
    /// There is no such event.
    pub fn break_at(&mut self, event: &str, tag: &str) -> Result<(), ErrorKind> {
        let event = DebugEvent::from_name(event).ok_or(ErrorKind::NotFound)?;
        self.add(Rule { event, state: 0, action: Action::Suspend(tag.to_owned()), hits: 0 });
        Ok(())
    }

    /// Forgets the breakpoints with this tag that were not hit; whether there were any.
    pub fn forget(&mut self, tag: &str) -> bool {
        let before = self.rules.len();
        self.rules.retain(|(_, rule)| !matches!(&rule.action, Action::Suspend(own) if own == tag));
        self.rules.len() < before
    }

    fn remove(&mut self, id: u64) {
        self.rules.retain(|(own, _)| *own != id);
        self.active.retain(|own| *own != id);
    }

    /// State, rules and what is active, for people who want to know why a request failed.
    pub fn to_json(&self) -> Value {
        let rules = self.rules.iter().map(|(id, rule)| {
            let mut value = rule.to_json();
            if matches!(rule.action, Action::Inject(_)) {
                value["active"] = self.active.contains(id).into();
            }
            value
        });
        json!({ "state": self.state, "rules": rules.collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(section: Section, text: &str) -> Result<Rule, RuleError> {
        let pairs: Vec<_> = text
            .split(' ')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Rule::new(section, &pairs)
    }

    fn engine(rules: &[(Section, &str)]) -> Engine {
        Engine::new(rules.iter().map(|(section, text)| rule(*section, text).expect("a rule")))
    }

    const INJECT: Section = Section::Inject;
    const SET: Section = Section::SetState;

    fn read(engine: &mut Engine) -> Option<i32> {
        engine.check(IoType::Read, 0, 512).map(|e| e.errno)
    }

    #[test]
    fn a_new_state_counts_after_its_event_only() {
        let mut engine = engine(&[
            (SET, "event=read_aio state=1 new_state=2"),
            (INJECT, "event=read_aio state=2 errno=28"),
        ]);
        engine.event(DebugEvent::ReadAio);
        assert_eq!(read(&mut engine), None);
        engine.event(DebugEvent::ReadAio);
        assert_eq!(read(&mut engine), Some(28));
    }

    #[test]
    fn active_rules_stay_until_others_take_their_place() {
        let mut engine =
            engine(&[(INJECT, "event=read_aio"), (INJECT, "event=write_aio errno=28 iotype=write")]);
        assert_eq!(read(&mut engine), None, "nothing announced");
        engine.event(DebugEvent::ReadAio);
        engine.event(DebugEvent::L2Load);
        assert_eq!(engine.check(IoType::Flush, 0, 0).map(|e| e.errno), Some(5));
        assert_eq!(engine.check(IoType::BlockStatus, 0, 512), None, "only when asked for by name");
        engine.event(DebugEvent::WriteAio);
        assert_eq!(read(&mut engine), None);
        assert_eq!(engine.check(IoType::Write, 0, 512).map(|e| e.errno), Some(28));
    }

    #[test]
    fn the_first_rule_defined_decides_and_once_is_once() {
        let mut engine = engine(&[
            (INJECT, "event=read_aio sector=1 errno=1 once=on"),
            (INJECT, "event=read_aio errno=0 sector=2"),
            (INJECT, "event=read_aio errno=3"),
        ]);
        engine.event(DebugEvent::ReadAio);
        assert_eq!(engine.check(IoType::Read, 0, 1024).map(|e| e.errno), Some(1));
        assert_eq!(engine.check(IoType::Read, 0, 1024).map(|e| e.errno), Some(3));
        assert_eq!(engine.check(IoType::Read, 1024, 1), None, "decided: no error");
        assert_eq!(engine.check(IoType::Flush, 0, 0).map(|e| e.errno), Some(3), "a flush covers no sector");
    }

    #[test]
    fn of_several_new_states_the_first_rules_counts() {
        let mut engine = engine(&[(SET, "event=l2_load new_state=7"), (SET, "event=l2_load new_state=8")]);
        engine.event(DebugEvent::L2Load);
        assert_eq!(engine.to_json()["state"], 7);
    }

    #[test]
    fn breakpoints_are_hit_once_and_can_be_forgotten() {
        let mut engine = engine(&[]);
        assert_eq!(engine.break_at("frob", "A"), Err(ErrorKind::NotFound));
        engine.break_at("l2_load", "A").expect("an event");
        engine.break_at("l2_load", "B").expect("an event");
        engine.break_at("l1_update", "C").expect("an event");
        assert_eq!(engine.event(DebugEvent::L2Load).suspended, ["B", "A"], "the youngest first");
        assert_eq!(engine.event(DebugEvent::L2Load).suspended, [""; 0]);
        assert!(engine.forget("C") && !engine.forget("C"));
    }

    #[test]
    fn rules_that_are_none() {
        for (section, text, expect) in [
            (INJECT, "", "Missing event name for rule"),
            (INJECT, "event=frob", "invalid parameter value: frob"),
            (INJECT, "event=read_aio iotype=frob", "invalid parameter value: frob"),
            (INJECT, "event=read_aio errno=x", "Parameter 'errno' expects a number"),
            (INJECT, "event=read_aio sector=x", "Parameter 'sector' expects a number"),
            (INJECT, "event=read_aio once=x", "Parameter 'once' expects 'on' or 'off'"),
            (SET, "event=read_aio new_state=x", "Parameter 'new_state' expects a number"),
        ] {
            assert_eq!(rule(section, text).expect_err(text).to_string(), expect, "{text}");
        }
        let named = rule(INJECT, "event=read_aio errno=ENOSPC").expect("a name");
        let number = rule(INJECT, "event=read_aio errno=0x1c").expect("a number");
        assert_eq!(named, number);
    }
}
