//! Time as the domain keeps it: whole microseconds in UTC, read from a clock that is passed in.
//!
//! Every stored time is a [`UtcMicros`]; every text form is RFC 3339 with an offset. Nothing below the service reads
//! the machine's clock by itself, so that a test decides what time it is.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A moment, microseconds since 1970 in UTC. Its text is RFC 3339 with six decimals and `Z`, so texts sort as times do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcMicros(i64);

/// Largest moment: a day before the end of the year 9999, so that it has a text in every time zone.
const MICROS_MAX: i64 = 253_402_207_199_999_999;

impl UtcMicros {
    /// The moment, when it lies between 1970 and the year 9999.
    pub fn new(micros: i64) -> Option<Self> {
        (0..=MICROS_MAX).contains(&micros).then_some(Self(micros))
    }

    /// The nearest moment that has a text form.
    pub fn clamped(micros: i64) -> Self {
        Self(micros.clamp(0, MICROS_MAX))
    }

    /// Microseconds since 1970.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since 1970, rounded down: a record's timestamp.
    pub fn millis(self) -> i64 {
        self.0 / 1_000
    }

    /// The moment that much later (earlier when negative).
    pub fn plus_micros(self, micros: i64) -> Self {
        Self::clamped(self.0.saturating_add(micros))
    }
}

impl std::fmt::Display for UtcMicros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let timestamp = jiff::Timestamp::from_microsecond(self.0).map_err(|_| std::fmt::Error)?;
        write!(f, "{timestamp:.6}")
    }
}

impl std::str::FromStr for UtcMicros {
    type Err = String;

    /// Parses RFC 3339 with an offset; digits below a microsecond are dropped.
    fn from_str(text: &str) -> Result<Self, String> {
        let timestamp: jiff::Timestamp = text.parse().map_err(|_| {
            format!("`{text}` is not an RFC 3339 time with an offset, such as 2026-03-01T09:00:00+09:00")
        })?;
        Self::new(timestamp.as_microsecond())
            .ok_or_else(|| format!("`{text}` is not between 1970 and the year 9999"))
    }
}

impl Serialize for UtcMicros {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UtcMicros {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What time it is. Cheap to clone and call.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UtcMicros + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(|| {
            let since_1970 =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            UtcMicros::clamped(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
        }))
    }

    /// A clock that says what the function says.
    pub fn from_fn(now: impl Fn() -> UtcMicros + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The moment now.
    pub fn now(&self) -> UtcMicros {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_rfc_3339_in_utc_with_six_decimals() {
        for (given, printed) in [
            ("2026-03-01T09:00:00+09:00", "2026-03-01T00:00:00.000000Z"),
            ("2026-03-01T00:00:00.123456789Z", "2026-03-01T00:00:00.123456Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
        ] {
            let time: UtcMicros = given.parse().unwrap();
            assert_eq!(time.to_string(), printed, "{given}");
            assert_eq!(printed.parse::<UtcMicros>().unwrap(), time);
        }
    }

    #[test]
    fn refuses_a_time_without_offset_or_outside_the_range() {
        for text in ["2026-03-01T09:00:00", "2026-03-01", "", "1969-12-31T23:59:59Z", "yesterday"] {
            assert!(text.parse::<UtcMicros>().is_err(), "{text}");
        }
        assert_eq!(UtcMicros::new(MICROS_MAX + 1), None);
        assert!(UtcMicros::clamped(i64::MAX).to_string().starts_with("9999-12-30"));
    }
}
