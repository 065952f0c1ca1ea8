//! Runs one check after another, times them, and prints the table at the end.
//!
//! A failed check does not stop the others: one run shows all that is wrong.

use std::time::{Duration, Instant};

use anyhow::Result;

/// How a check ended.
#[derive(Debug)]
pub enum Outcome {
    /// What it checks holds.
    Passed,
    /// What it checks does not hold, or it could not run.
    Failed(String),
    /// It could not run here for a reason that lies outside the tree. Fails a strict run.
    LeftOut(String),
}

/// The checks of one run.
#[derive(Debug, Default)]
pub struct Steps {
    done: Vec<(String, Outcome, Duration)>,
}

impl Steps {
    /// Runs one check. An error is a failure of that check.
    pub fn run(&mut self, name: &str, check: impl FnOnce() -> Result<Outcome>) {
        println!("\n==> {name}");
        let began = Instant::now();
        let outcome = check().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let took = began.elapsed();
        println!("<== {name}: {} in {:.1} s", word(&outcome), took.as_secs_f64());
        if let Outcome::Failed(why) | Outcome::LeftOut(why) = &outcome {
            println!("    {why}");
        }
        self.done.push((name.to_owned(), outcome, took));
    }

    /// Whether any check that ran so far failed.
    pub fn any_failed(&self) -> bool {
        self.done.iter().any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
    }

    /// What had to be left out.
    pub fn left_out(&self) -> impl Iterator<Item = (&str, &str)> {
        self.done.iter().filter_map(|(name, outcome, _)| match outcome {
            Outcome::LeftOut(why) => Some((name.as_str(), why.as_str())),
            _ => None,
        })
    }

    /// Prints what each check took and how it ended.
    pub fn print_table(&self) {
        let total: Duration = self.done.iter().map(|(_, _, took)| *took).sum();
        println!("\n{:<32} {:>8}  result", "check", "seconds");
        for (name, outcome, took) in &self.done {
            let why = match outcome {
                Outcome::Passed => String::new(),
                Outcome::Failed(why) | Outcome::LeftOut(why) => format!(": {}", first_line(why)),
            };
            println!("{name:<32} {:>8.1}  {}{why}", took.as_secs_f64(), word(outcome));
        }
        println!("{:<32} {:>8.1}", "total", total.as_secs_f64());
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed(_) => "FAILED",
        Outcome::LeftOut(_) => "LEFT OUT",
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_fails_its_own_step_only() {
        let mut steps = Steps::default();
        steps.run("a", || anyhow::bail!("no"));
        steps.run("b", || Ok(Outcome::Passed));
        steps.run("c", || Ok(Outcome::LeftOut("not here".into())));
        assert!(steps.any_failed());
        assert_eq!(steps.left_out().collect::<Vec<_>>(), [("c", "not here")]);
        assert_eq!(steps.done.len(), 3);
    }
}
