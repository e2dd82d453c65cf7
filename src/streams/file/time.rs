//! Moments and lengths of time as topology files and JSON write them.
//!
//! RFC 3339 text to milliseconds and back without a general date library on the hot path, and the short durations of
//! files (`500ms`, `30s`, `10m`, `1h`, `7d`). What must always hold: what [`write_timestamp`] writes, [`parse_timestamp`] reads back
//! to the same millisecond.

const MS_PER_DAY: i64 = 86_400_000;

/// Milliseconds since the epoch of an RFC 3339 text with an offset; digits below the millisecond are cut off.
/// `None` when the text is not one (a time without an offset names no moment).
pub fn parse_timestamp(text: &str) -> Option<i64> {
    let b = text.as_bytes();
    if b.len() < 20 || b[4] != b'-' || b[7] != b'-' || b[13] != b':' || b[16] != b':' {
        return None;
    }
    if !matches!(b[10], b'T' | b't' | b' ') {
        return None;
    }
    let year = digits(&b[0..4])?;
    let (month, day) = (digits(&b[5..7])?, digits(&b[8..10])?);
    let (hour, minute, second) = (digits(&b[11..13])?, digits(&b[14..16])?, digits(&b[17..19])?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    // A leap second is read as the last moment of its minute's next second, as most clocks repeat it.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if b[at] == b'.' {
        at += 1;
        let start = at;
        let mut scale = 100;
        while at < b.len() && b[at].is_ascii_digit() {
            millis += i64::from(b[at] - b'0') * scale;
            scale /= 10;
            at += 1;
        }
        if at == start {
            return None;
        }
    }
    let offset_minutes = match b.get(at)? {
        b'Z' | b'z' if at + 1 == b.len() => 0,
        sign @ (b'+' | b'-') => {
            let rest = &b[at + 1..];
            let (hours, minutes) = match rest {
                [_, _, b':', _, _] => (digits(&rest[0..2])?, digits(&rest[3..5])?),
                [_, _, _, _] => (digits(&rest[0..2])?, digits(&rest[2..4])?),
                _ => return None,
            };
            if hours > 23 || minutes > 59 {
                return None;
            }
            let total = hours * 60 + minutes;
            if *sign == b'-' { -total } else { total }
        }
        _ => return None,
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds - offset_minutes * 60) * 1_000 + millis)
}

/// Appends the moment as RFC 3339 in UTC with three digits of the second (`2026-11-23T01:02:03.004Z`).
pub(crate) fn write_timestamp(ms: i64, out: &mut Vec<u8>) {
    let days = ms.div_euclid(MS_PER_DAY);
    let rest = ms.rem_euclid(MS_PER_DAY);
    let (year, month, day) = civil_from_days(days);
    if !(0..=9999).contains(&year) {
        // RFC 3339 has four digits of the year; beyond them the expanded form of ISO 8601 keeps the value.
        out.extend_from_slice(format!("{year:+07}").as_bytes());
    } else {
        push_digits(out, year, 4);
    }
    out.push(b'-');
    push_digits(out, month, 2);
    out.push(b'-');
    push_digits(out, day, 2);
    out.push(b'T');
    push_digits(out, rest / 3_600_000, 2);
    out.push(b':');
    push_digits(out, rest / 60_000 % 60, 2);
    out.push(b':');
    push_digits(out, rest / 1_000 % 60, 2);
    out.push(b'.');
    push_digits(out, rest % 1_000, 3);
    out.push(b'Z');
}

/// The moment as text, for messages and keys.
pub fn format_timestamp(ms: i64) -> String {
    let mut out = Vec::with_capacity(24);
    write_timestamp(ms, &mut out);
    // Only ASCII is written above.
    String::from_utf8(out).unwrap_or_default()
}

/// The units of a duration in a file, with their milliseconds.
const UNITS: [(&str, i64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", MS_PER_DAY)];

/// Milliseconds of a duration such as `30s`, `1h30m` or `250ms`; whole numbers with units, biggest first or not.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..letters])?;
        total = total.checked_add(number.checked_mul(*unit)?)?;
        rest = rest[letters..].trim_start();
    }
    Some(total)
}

/// The duration in the largest units that are exact: `90000` is `1m30s`.
pub(crate) fn format_duration(ms: i64) -> String {
    if ms == 0 {
        return "0s".into();
    }
    let mut rest = ms.unsigned_abs();
    let mut out = if ms < 0 { String::from("-") } else { String::new() };
    for (name, unit) in UNITS.iter().rev() {
        let unit = unit.unsigned_abs();
        if rest >= unit {
            out.push_str(&format!("{}{name}", rest / unit));
            rest %= unit;
        }
    }
    out
}

fn digits(bytes: &[u8]) -> Option<i64> {
    let mut value = 0;
    for byte in bytes {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(byte - b'0');
    }
    Some(value)
}

fn push_digits(out: &mut Vec<u8>, value: i64, width: usize) {
    let mut buffer = [b'0'; 4];
    let mut rest = value;
    for slot in buffer[..width].iter_mut().rev() {
        *slot = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&buffer[..width]);
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a civil date (Howard Hinnant's algorithm, proleptic Gregorian).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The civil date of a day number; the inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_rfc_3339_allows_and_nothing_else() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-23T10:20:30.123456Z", Some(1_795_429_230_123)),
            ("2026-11-23T10:20:30.1+09:00", Some(1_795_429_230_100 - 9 * 3_600_000)),
            ("2026-11-23 10:20:30-0130", Some(1_795_429_230_000 + 90 * 60_000)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800_000)),
            ("2023-02-29T00:00:00Z", None),
            ("2026-11-23T10:20:30", None),
            ("2026-11-23T10:20:30.Z", None),
            ("2026-11-23T24:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-23T10:20:30Zx", None),
            ("2026-11-23T10:20:30+9", None),
            ("yesterday, at about noon", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timestamp(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_of_files() {
        let cases = [
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("1h30m", Some(5_400_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("1 h", None),
            ("10", None),
            ("-1s", None),
            ("1w", None),
            ("99999999999999999999s", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
        assert_eq!(format_duration(90_000), "1m30s");
    }

    proptest! {
        #[test]
        fn written_moments_read_back(ms in -62_167_219_200_000_i64..253_402_300_799_999) {
            let text = format_timestamp(ms);
            prop_assert_eq!(parse_timestamp(&text), Some(ms));
            let by_jiff: jiff::Timestamp = text.parse().unwrap();
            prop_assert_eq!(by_jiff.as_millisecond(), ms);
        }

        #[test]
        fn any_text_is_refused_or_agrees_with_jiff(text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]0[0-9]:[0-5][0-9])") {
            let by_jiff = text.parse::<jiff::Timestamp>().ok().map(|t| t.as_nanosecond().div_euclid(1_000_000) as i64);
            // jiff ends a little before the year 9999 does, and begins a little after its year -9999.
            if by_jiff.is_some() || !text.starts_with("9999-12-3") {
                prop_assert_eq!(parse_timestamp(&text), by_jiff);
            }
        }

        #[test]
        fn durations_read_back(ms in 0_i64..10_000_000_000) {
            prop_assert_eq!(parse_duration(&format_duration(ms)), Some(ms));
        }
    }
}
