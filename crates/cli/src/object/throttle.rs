//! Throttle groups: their properties, in both spellings.

use anyhow::{Result, bail};
use cowbell_block::ThrottleGroup;
use cowbell_block::throttle::LimitsBuilder;
use cowbell_block::throttle::limits::Spelling;
use serde_json::Value;

use super::Properties;

/// The type's name.
pub(super) const TYPE: &str = "throttle-group";

/// What can be given, as help shows it.
pub(super) fn properties() -> impl Iterator<Item = String> {
    ["limits=<ThrottleLimits>".to_owned()]
        .into_iter()
        .chain(LimitsBuilder::keys().map(|key| format!("x-{key}=<int>")))
}

/// The group that the properties describe. Those that no group has are left.
pub(super) fn group(id: &str, properties: &mut Properties) -> Result<ThrottleGroup> {
    flatten(properties)?;
    let mut limits = LimitsBuilder::default();
    for key in LimitsBuilder::keys() {
        for (spelling, prefix) in [(Spelling::Legacy, "x-"), (Spelling::Plain, "limits.")] {
            if let Some(value) = integer(properties, &format!("{prefix}{key}"))? {
                limits.set(spelling, &key, value)?;
            }
        }
    }
    Ok(ThrottleGroup::new(id, limits.finish()?, cowbell_host::time()))
}

/// Gives the members of `limits` the names that they have in a list.
fn flatten(properties: &mut Properties) -> Result<()> {
    match properties.tree.shift_remove("limits") {
        None => {}
        Some(Value::Object(limits)) => {
            for (key, value) in limits {
                properties.tree.insert(format!("limits.{key}"), value);
            }
        }
        Some(_) => bail!("Invalid parameter type for 'limits', expected: object"),
    }
    Ok(())
}

fn integer(properties: &mut Properties, key: &str) -> Result<Option<i64>> {
    match properties.tree.shift_remove(key) {
        None => Ok(None),
        Some(Value::String(text)) if !properties.typed => match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => bail!("Parameter '{key}' expects integer"),
        },
        Some(Value::Number(number)) if number.as_i64().is_some() => Ok(number.as_i64()),
        Some(_) => bail!("Invalid parameter type for '{key}', expected: integer"),
    }
}

/// Decimal, hexadecimal after `0x`, octal after `0`.
fn parse(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(&digits[1..], 8),
        None => digits.parse(),
    };
    magnitude.ok().map(|magnitude| sign * magnitude)
}

#[cfg(test)]
mod tests {
    use super::super::define;
    use cowbell_block::ThrottleGroups;
    use cowbell_block::secrets::Secrets;

    fn defined(definition: &str) -> Result<(), String> {
        let (mut secrets, mut groups) = (Secrets::default(), ThrottleGroups::default());
        define(definition, &mut secrets, &mut groups).map_err(|e| e.to_string())?;
        assert!(groups.get("g").is_some());
        Ok(())
    }

    #[test]
    fn groups_are_given_in_many_forms() {
        for good in [
            "throttle-group,id=g",
            "throttle-group,id=g,limits.iops-total=10,limits.iops-total-max=20,limits.iops-total-max-length=5",
            "throttle-group,id=g,x-iops-total=10,x-iops-size=4096",
            "throttle-group,id=g,limits.iops-total=0x10",
            r#"{"qom-type":"throttle-group","id":"g","limits":{"iops-total":5}}"#,
        ] {
            assert_eq!(defined(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn mistakes_are_told_in_the_references_words() {
        for (bad, text) in [
            ("throttle-group,limits.iops-total=1", "Parameter 'id' is missing"),
            ("throttle-group,id=g,limits.bps-total=1M", "Parameter 'limits.bps-total' expects integer"),
            ("throttle-group,id=g,x-bps-total=1M", "Parameter 'x-bps-total' expects integer"),
            ("throttle-group,id=g,limits.iops-total=1.5", "Parameter 'limits.iops-total' expects integer"),
            ("throttle-group,id=g,limits.iops-total=", "Parameter 'limits.iops-total' expects integer"),
            ("throttle-group,id=g,limits.foo=abc", "Parameter 'limits.foo' is unexpected"),
            ("throttle-group,id=g,foo=abc", "Parameter 'foo' is unexpected"),
            ("throttle-group,id=g,limits=5", "Invalid parameter type for 'limits', expected: object"),
            (
                r#"{"qom-type":"throttle-group","id":"g","x-iops-total":"5"}"#,
                "Invalid parameter type for 'x-iops-total', expected: integer",
            ),
            ("throttle-group,id=g,x-iops-size=4096", "iops size requires an iops value to be set"),
        ] {
            assert_eq!(defined(bad), Err(text.to_owned()));
        }
    }
}
