//! The limits of a throttle group: six rates, what bursts may exceed them, and how large requests are counted.

use crate::error::{Error, ErrorKind};

/// Largest rate, in bytes or requests per second: the reference's.
pub const RATE_MAX: i64 = 1_000_000_000_000_000;

/// What a rate counts, and of which requests. The order is that of [`Limits::rates`].
pub(super) const RATES: [&str; 6] =
    ["bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"];
const BPS_TOTAL: usize = 0;
const IOPS_TOTAL: usize = 3;

/// One rate. A zero average means that there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Units per second in the long run.
    pub(super) average: u64,
    /// Units per second in a burst; 0: there are no bursts but what a tenth of a second allows.
    pub(super) burst: u64,
    /// Seconds that a burst may last, at least 1.
    pub(super) burst_sec: u32,
}

/// Limits that do not contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(super) rates: [Rate; 6],
    /// Bytes that count as one request; longer ones count as several. 0: each is one.
    pub(super) iops_size: u64,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.rates.iter().all(|rate| rate.average == 0)
    }
}

/// Limits that nobody can keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No limit has the name.
    #[error("Parameter '{0}' is unexpected")]
    Unknown(String),
    /// In the old spelling.
    #[error("Property values cannot be negative")]
    Negative,
    /// A burst of more seconds than can be counted.
    #[error("{key} value must be in the{gap}range [0, {}]", u32::MAX)]
    Length {
        /// The limit.
        key: String,
        /// The old spelling's message lacks a blank in the reference.
        gap: &'static str,
    },
    /// Both the whole and its parts.
    #[error("bps/iops/max total values and read/write values cannot be used at the same time")]
    TotalAndParts,
    /// Requests are to be divided, but not counted.
    #[error("iops size requires an iops value to be set")]
    SizeWithoutRate,
    /// Beyond what can be counted.
    #[error("bps/iops/max values must be within [0, {RATE_MAX}]")]
    Range,
    /// A burst of no length.
    #[error("the burst length cannot be 0")]
    NoLength,
    /// A burst of no height.
    #[error("burst length set without burst rate")]
    LengthWithoutRate,
    /// A burst of more units than can be counted.
    #[error("burst length too high for this burst rate")]
    BurstTooLong,
    /// A burst above no limit.
    #[error("bps_max/iops_max require corresponding bps/iops values")]
    BurstWithoutRate,
    /// A burst that is slower than the average.
    #[error("bps_max/iops_max cannot be lower than bps/iops")]
    BurstBelowRate,
}

impl From<LimitError> for Error {
    fn from(e: LimitError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// How a limit is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// `limits.iops-total`.
    Plain,
    /// `x-iops-total`.
    Legacy,
}

/// Limits as a user gives them, one by one.
#[derive(Clone, Copy, Debug)]
pub struct LimitsBuilder {
    rates: [Given; 6],
    iops_size: u64,
}

#[derive(Clone, Copy, Debug)]
struct Given {
    average: i64,
    burst: i64,
    burst_sec: u32,
}

impl Default for LimitsBuilder {
    fn default() -> Self {
        Self { rates: [Given { average: 0, burst: 0, burst_sec: 1 }; 6], iops_size: 0 }
    }
}

impl LimitsBuilder {
    /// The names of all limits, without what a spelling puts before them.
    pub fn keys() -> impl Iterator<Item = String> {
        let rates =
            RATES.iter().flat_map(|rate| ["", "-max", "-max-length"].map(|end| format!("{rate}{end}")));
        rates.chain(["iops-size".to_owned()])
    }

    /// Sets the limit `key` of [`LimitsBuilder::keys`].
    ///
    /// # Errors
    /// There is no such limit, or it cannot have the value.
    pub fn set(&mut self, spelling: Spelling, key: &str, value: i64) -> Result<(), LimitError> {
        if spelling == Spelling::Legacy && value < 0 {
            return Err(LimitError::Negative);
        }
        if key == "iops-size" {
            // As in the reference, where a negative size is a very large one: no request is that long.
            self.iops_size = value as u64;
            return Ok(());
        }
        let unknown = || LimitError::Unknown(key.to_owned());
        let found =
            RATES.iter().zip(&mut self.rates).find_map(|(name, rate)| Some((rate, key.strip_prefix(name)?)));
        let (rate, end) = found.ok_or_else(unknown)?;
        match end {
            "" => rate.average = value,
            "-max" => rate.burst = value,
            "-max-length" => rate.burst_sec = length(spelling, key, value)?,
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// The limits, if they do not contradict each other.
    ///
    /// # Errors
    /// The first rule that they break, in the reference's order.
    pub fn finish(&self) -> Result<Limits, LimitError> {
        let both = |first: usize, value: fn(&Given) -> i64| {
            let given = |at: usize| value(&self.rates[at]) != 0;
            given(first) && (given(first + 1) || given(first + 2))
        };
        let total_and_parts =
            [BPS_TOTAL, IOPS_TOTAL].iter().any(|at| both(*at, |g| g.average) || both(*at, |g| g.burst));
        if total_and_parts {
            return Err(LimitError::TotalAndParts);
        }
        if self.iops_size != 0 && self.rates[IOPS_TOTAL..].iter().all(|given| given.average == 0) {
            return Err(LimitError::SizeWithoutRate);
        }
        let unlimited = Rate { average: 0, burst: 0, burst_sec: 1 };
        let mut limits = Limits { rates: [unlimited; 6], iops_size: self.iops_size };
        for (rate, given) in limits.rates.iter_mut().zip(&self.rates) {
            *rate = given.checked()?;
        }
        Ok(limits)
    }
}

fn length(spelling: Spelling, key: &str, value: i64) -> Result<u32, LimitError> {
    let (prefix, gap) = match spelling {
        Spelling::Plain => ("", " "),
        Spelling::Legacy => ("x-", ""),
    };
    match value > i64::from(u32::MAX) {
        true => Err(LimitError::Length { key: format!("{prefix}{key}"), gap }),
        // A negative length is a very long one, as in the reference.
        false => Ok(value as u32),
    }
}

impl Given {
    fn checked(self) -> Result<Rate, LimitError> {
        let range = 0..=RATE_MAX;
        if !range.contains(&self.average) || !range.contains(&self.burst) {
            return Err(LimitError::Range);
        }
        let rate = Rate { average: self.average as u64, burst: self.burst as u64, burst_sec: self.burst_sec };
        match rate {
            Rate { burst_sec: 0, .. } => Err(LimitError::NoLength),
            Rate { burst_sec: 2.., burst: 0, .. } => Err(LimitError::LengthWithoutRate),
            Rate { burst: 0, .. } => Ok(rate),
            _ if u64::from(rate.burst_sec) > RATE_MAX as u64 / rate.burst => Err(LimitError::BurstTooLong),
            Rate { average: 0, .. } => Err(LimitError::BurstWithoutRate),
            _ if rate.burst < rate.average => Err(LimitError::BurstBelowRate),
            _ => Ok(rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(list: &[(&str, i64)]) -> Result<Limits, String> {
        let mut builder = LimitsBuilder::default();
        for (key, value) in list {
            let (spelling, key) = match key.strip_prefix("x-") {
                Some(key) => (Spelling::Legacy, key),
                None => (Spelling::Plain, *key),
            };
            builder.set(spelling, key, *value).map_err(|e| e.to_string())?;
        }
        builder.finish().map_err(|e| e.to_string())
    }

    #[test]
    fn every_name_is_known_and_has_its_place() {
        for key in LimitsBuilder::keys() {
            assert!(LimitsBuilder::default().set(Spelling::Plain, &key, 1).is_ok(), "{key}");
        }
        assert_eq!(LimitsBuilder::keys().count(), 19);
        let limits = built(&[("iops-write", 5), ("iops-write-max", 7), ("x-iops-write-max-length", 3)]);
        let rate = limits.expect("good").rates[5];
        assert_eq!((rate.average, rate.burst, rate.burst_sec), (5, 7, 3));
        assert!(built(&[]).expect("nothing").is_unlimited());
    }

    #[test]
    fn contradictions_are_told_in_the_references_words() {
        let total = "bps/iops/max total values and read/write values cannot be used at the same time";
        let range = "bps/iops/max values must be within [0, 1000000000000000]";
        let cases: [(&[(&str, i64)], &str); 17] = [
            (&[("iops-total", 10), ("iops-read", 5)], total),
            (&[("iops-total", -1)], range),
            (&[("bps-total", RATE_MAX + 1)], range),
            (&[("iops-total", 10), ("iops-total-max", 20_000_000_000_000_000)], range),
            (&[("iops-total-max", 5)], "bps_max/iops_max require corresponding bps/iops values"),
            (
                &[("iops-read", 10), ("iops-total-max", 20)],
                "bps_max/iops_max require corresponding bps/iops values",
            ),
            (&[("iops-total", 10), ("iops-total-max", 5)], "bps_max/iops_max cannot be lower than bps/iops"),
            (&[("iops-total", 10), ("iops-total-max-length", 0)], "the burst length cannot be 0"),
            (&[("iops-total", 10), ("iops-total-max-length", 5)], "burst length set without burst rate"),
            (&[("iops-total", 3), ("iops-total-max-length", -1)], "burst length set without burst rate"),
            (&[("x-iops-size", 4096)], "iops size requires an iops value to be set"),
            (&[("iops-size", 4096)], "iops size requires an iops value to be set"),
            (&[("x-iops-total", -1)], "Property values cannot be negative"),
            (
                &[("x-iops-total-max-length", 5_000_000_000)],
                "x-iops-total-max-length value must be in therange [0, 4294967295]",
            ),
            (
                &[("bps-total-max-length", 100_000_000_000_000)],
                "bps-total-max-length value must be in the range [0, 4294967295]",
            ),
            (
                &[
                    ("bps-total", RATE_MAX),
                    ("bps-total-max", RATE_MAX),
                    ("bps-total-max-length", 4_294_967_295),
                ],
                "burst length too high for this burst rate",
            ),
            (&[("foo", 1)], "Parameter 'foo' is unexpected"),
        ];
        for (list, text) in cases {
            assert_eq!(built(list).expect_err(text), text, "{list:?}");
        }
        assert!(built(&[("iops-size", -1), ("iops-total", 3)]).is_ok());
        assert!(built(&[("bps-total", RATE_MAX)]).is_ok());
    }
}
