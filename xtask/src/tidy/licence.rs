//! The licences of everything we depend on, from what each package declares.

use serde_json::Value;

/// Licences that ask for nothing but to be named.
const ALLOWED: [&str; 13] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "Zlib",
    "0BSD",
    "Unicode-3.0",
    "Unlicense",
    // LLVM's, in libFuzzer.
    "NCSA",
];

/// Packages with a licence that is not allowed, and how many packages were looked at.
pub fn check(metadata: &Value) -> (Vec<String>, usize) {
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let offences = packages
        .iter()
        .filter_map(|package| {
            let licence = package["license"].as_str().unwrap_or("none declared");
            let name = package["name"].as_str().unwrap_or_default();
            let version = package["version"].as_str().unwrap_or_default();
            (!is_allowed(licence)).then(|| format!("{name} {version}: licence {licence}"))
        })
        .collect();
    (offences, packages.len())
}

/// Whether the expression can be met with licences of the list alone.
fn is_allowed(expression: &str) -> bool {
    // The old way of writing a choice.
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest) && rest.is_empty()
}

/// `all (OR all)*`
fn any(words: &mut &[&str]) -> bool {
    let mut result = all(words);
    while let Some((&"OR", rest)) = words.split_first() {
        *words = rest;
        result |= all(words);
    }
    result
}

/// `one (AND one)*`
fn all(words: &mut &[&str]) -> bool {
    let mut result = one(words);
    while let Some((&"AND", rest)) = words.split_first() {
        *words = rest;
        result &= one(words);
    }
    result
}

/// A licence, perhaps with an exception, or an expression in parentheses.
fn one(words: &mut &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let result = any(words);
            match words.split_first() {
                Some((&")", rest)) => *words = rest,
                _ => return false,
            }
            result
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            ALLOWED.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, rest @ ..] => {
            *words = rest;
            ALLOWED.contains(licence)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_understood() {
        let check = |text, expect| assert_eq!(is_allowed(text), expect, "{text}");
        check("MIT", true);
        check("MIT/Apache-2.0", true);
        check("GPL-3.0", false);
        check("GPL-3.0 OR MIT", true);
        check("GPL-3.0 AND MIT", false);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("(MIT OR Apache-2.0) AND OpenSSL", false);
        check("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true);
        check("Zlib OR Apache-2.0 OR MIT", true);
        check("", false);
        check("MIT )", false);
    }
}
