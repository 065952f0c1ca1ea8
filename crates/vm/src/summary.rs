//! How a run ended, for programs.

use cowbell_machine::{Finish, Machine};
use serde_json::{Value, json};

use crate::surroundings::Wish;
use crate::vm::End;

/// The summary of a run. Everything in it but `host` is the same on every host.
///
/// | key | meaning |
/// |---|---|
/// | `icount` | instructions executed |
/// | `idle` | instructions that fitted into the time when the machine was idle |
/// | `time-ns` | what the machine's clock shows, nanoseconds since its start |
/// | `digest` | of RAM, registers and devices, 32 hexadecimal digits |
/// | `resets` | how often the guest reset the machine |
/// | `exit` | `reason`, and for `power-off` the guest's `code` |
/// | `host` | `cpu-ns` that the run took |
pub fn summary(machine: &Machine, end: End, cpu_ns: u64) -> Value {
    let clock = machine.bus().clock;
    json!({
        "icount": clock.count,
        "idle": clock.idle,
        "time-ns": clock.ns(),
        "digest": format!("{:032x}", machine.digest()),
        "resets": machine.resets(),
        "exit": exit(end),
        "host": { "cpu-ns": cpu_ns },
    })
}

fn exit(end: End) -> Value {
    match end {
        End::Finished(Finish::PowerOff(code)) => json!({ "reason": "power-off", "code": code }),
        other => json!({ "reason": reason(other) }),
    }
}

const fn reason(end: End) -> &'static str {
    match end {
        End::Finished(Finish::PowerOff(_)) => "power-off",
        End::Finished(Finish::Reset) => "reset",
        End::Limit => "limit",
        End::Asleep => "asleep",
        End::Wished(Wish::Quit) => "quit",
        End::Wished(Wish::Interrupted) => "interrupted",
        End::Wished(Wish::ConsoleGone) => "console-gone",
        End::Killed => "killed-by-debugger",
    }
}
