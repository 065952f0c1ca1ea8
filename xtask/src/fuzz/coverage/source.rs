//! Which lines of a source file are code that may or may not be reached.

use std::collections::BTreeSet;

/// Lines that are not counted: attributes, declarations of types, tests, lines that only open or close something, functions
/// that print, and the functions that `without` names.
pub fn left_out(source: &str, without: &[&str]) -> BTreeSet<usize> {
    let mut lines = BTreeSet::new();
    let mut brackets = 0;
    let mut item: Option<Item> = None;
    for (number, line) in (1..).zip(source.lines()) {
        let text = line.trim();
        if text.starts_with("#[cfg(test)]") {
            lines.extend(number..=source.lines().count());
            break;
        }
        if brackets > 0 || text.starts_with("#[") {
            brackets = (brackets + balance(text, '[', ']')).max(0);
            lines.insert(number);
            continue;
        }
        let begun = item.take().or_else(|| Item::beginning(text, without));
        if let Some(mut begun) = begun {
            begun.take(text);
            if begun.is_left_out || begun.in_signature {
                lines.insert(number);
            }
            begun.in_signature &= !begun.opened;
            item = (!begun.ended(text)).then_some(begun);
        }
        if text.chars().all(|c| "{}()[],;".contains(c)) {
            lines.insert(number);
        }
    }
    lines
}

/// A type or a function, from its first line on.
struct Item {
    is_left_out: bool,
    in_signature: bool,
    opened: bool,
    depth: i32,
}

impl Item {
    fn beginning(text: &str, without: &[&str]) -> Option<Item> {
        let words: Vec<&str> = text.split([' ', '(', '<']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|word| ["fn", "struct", "enum"].contains(word))?;
        let introduced =
            words[..at].iter().all(|word| ["pub", "async", "const", "crate)", "super)"].contains(word));
        let name = words.get(at + 1).filter(|_| introduced)?;
        let is_left_out = words[at] != "fn" || *name == "fmt" || without.contains(name);
        Some(Item { is_left_out, in_signature: words[at] == "fn", opened: false, depth: 0 })
    }

    fn take(&mut self, text: &str) {
        self.depth += balance(text, '{', '}');
        self.opened |= text.contains('{');
    }

    /// A function that is counted is watched up to its body only.
    fn ended(&self, text: &str) -> bool {
        match self.opened {
            true => self.depth <= 0 || !self.is_left_out,
            false => text.ends_with(';'),
        }
    }
}

fn balance(text: &str, open: char, close: char) -> i32 {
    text.chars().map(|c| i32::from(c == open) - i32::from(c == close)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, without: &[&str], expect: &[usize]) {
        assert_eq!(left_out(source, without).into_iter().collect::<Vec<_>>(), expect);
    }

    #[test]
    fn texts_and_declarations_are_not_counted() {
        check("#[error(\n  \"x\"\n)]\nlet a = 1;", &[], &[1, 2, 3]);
        check("pub enum A {\n  B,\n}\nlet a = 1;", &[], &[1, 2, 3]);
        check("pub(crate) struct A(u8);\nlet a = 1;", &[], &[1]);
        check("let a = 1;\n#[cfg(test)]\nmod tests {\n  let b = 1;\n}", &[], &[2, 3, 4, 5]);
        check("fn fmt(&self) -> X {\n  a();\n}\nlet b = 1;", &[], &[1, 2, 3]);
    }

    #[test]
    fn of_a_function_the_body_counts_unless_it_is_named() {
        let source =
            "pub(super) async fn read(\n  a: u8,\n) -> X {\n  b();\n  if c {\n    d();\n  }\n}\nfn e() {}";
        check(source, &[], &[1, 2, 3, 7, 8, 9]);
        check(source, &["read"], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        check("let function = fn_of(x);\nreturn a;", &[], &[]);
    }
}
