//! Arithmetic and number texts as SQLite has them.
//!
//! Integer results beyond 64 bits go on as doubles, division by zero is NULL, a text is cast by its longest numeric prefix, and a double is
//! written with 15 digits. The conversions between text and double follow SQLite's own double-double arithmetic step by step, because a
//! correctly rounded one differs in the last digit. What must always hold: the property test against SQLite finds no difference.

#![allow(
    clippy::excessive_precision,
    reason = "the constants have SQLite's digits, so that they can be compared with its source"
)]

use super::super::value::Datum;

/// `a + b`.
#[inline]
pub(crate) fn add(a: &Datum, b: &Datum) -> Datum {
    match (a, b) {
        (Datum::Int(x), Datum::Int(y)) => match x.checked_add(*y) {
            Some(sum) => Datum::Int(sum),
            None => Datum::float(*x as f64 + *y as f64),
        },
        _ => with_reals(a, b, |x, y| x + y),
    }
}

/// `a - b`.
#[inline]
pub(crate) fn subtract(a: &Datum, b: &Datum) -> Datum {
    match (a, b) {
        (Datum::Int(x), Datum::Int(y)) => match x.checked_sub(*y) {
            Some(difference) => Datum::Int(difference),
            None => Datum::float(*x as f64 - *y as f64),
        },
        _ => with_reals(a, b, |x, y| x - y),
    }
}

/// `a * b`.
#[inline]
pub(crate) fn multiply(a: &Datum, b: &Datum) -> Datum {
    match (a, b) {
        (Datum::Int(x), Datum::Int(y)) => match x.checked_mul(*y) {
            Some(product) => Datum::Int(product),
            None => Datum::float(*x as f64 * *y as f64),
        },
        _ => with_reals(a, b, |x, y| x * y),
    }
}

/// `a / b`: whole numbers divide to a whole number cut towards zero; by zero is NULL.
#[inline]
pub(crate) fn divide(a: &Datum, b: &Datum) -> Datum {
    match (a, b) {
        (Datum::Int(_), Datum::Int(0)) => Datum::Null,
        (Datum::Int(x), Datum::Int(y)) => match x.checked_div(*y) {
            Some(quotient) => Datum::Int(quotient),
            None => Datum::float(*x as f64 / *y as f64),
        },
        _ => match real(b) {
            Some(0.0) => Datum::Null,
            _ => with_reals(a, b, |x, y| x / y),
        },
    }
}

/// `a % b`, on whole numbers: doubles are cut to integers first, and the result is a double again.
#[inline]
pub(crate) fn remainder(a: &Datum, b: &Datum) -> Datum {
    if let (Datum::Int(x), Datum::Int(y)) = (a, b) {
        return if *y == 0 { Datum::Null } else { Datum::Int(x.checked_rem(*y).unwrap_or(0)) };
    }
    match (integer(a), integer(b)) {
        (Some(_), Some(0)) => Datum::Null,
        (Some(x), Some(y)) => Datum::float(x.checked_rem(y).unwrap_or(0) as f64),
        _ => Datum::Null,
    }
}

/// `-a`; the smallest integer becomes a double.
#[inline]
pub(crate) fn negate(a: &Datum) -> Datum {
    subtract(&Datum::Int(0), a)
}

/// The number as a double; `None` for NULL and for what is no number.
#[inline]
pub(crate) fn real(datum: &Datum) -> Option<f64> {
    match datum {
        Datum::Int(value) => Some(*value as f64),
        Datum::Float(value) => Some(*value),
        _ => None,
    }
}

/// The number as an integer, a double cut towards zero and held within 64 bits.
#[inline]
pub(crate) fn integer(datum: &Datum) -> Option<i64> {
    match datum {
        Datum::Int(value) => Some(*value),
        Datum::Float(value) => Some(real_to_integer(*value)),
        _ => None,
    }
}

fn with_reals(a: &Datum, b: &Datum, f: impl Fn(f64, f64) -> f64) -> Datum {
    match (real(a), real(b)) {
        (Some(x), Some(y)) => Datum::float(f(x, y)),
        _ => Datum::Null,
    }
}

/// A double cut to an integer; the ends of the range as SQLite draws them.
pub(crate) fn real_to_integer(value: f64) -> i64 {
    if value < -9_223_372_036_854_774_784.0 {
        i64::MIN
    } else if value > 9_223_372_036_854_774_784.0 {
        i64::MAX
    } else {
        value as i64
    }
}

/// `round(value, digits)`: half away from zero on the decimal text, as SQLite rounds.
pub(crate) fn round(value: f64, digits: i64) -> f64 {
    let digits = digits.clamp(0, 30);
    if !(-4_503_599_627_370_496.0..=4_503_599_627_370_496.0).contains(&value) {
        value
    } else if digits == 0 {
        ((value + if value < 0.0 { -0.5 } else { 0.5 }) as i64) as f64
    } else {
        parse_real(&fixed(value, digits as usize))
    }
}

/// A double as SQLite's `cast(x as text)` writes it (`%!.15g`): `1.0`, `0.1`, `1.0e+20`, `Inf`.
pub(crate) fn format_real(value: f64) -> String {
    let decoded = match decode(value, 15, 26) {
        Decoded::Special(text) => return text.to_owned(),
        Decoded::Digits(decoded) => decoded,
    };
    let exponent = decoded.point - 1;
    let mut out = String::new();
    if decoded.negative {
        out.push('-');
    }
    if !(-4..=14).contains(&exponent) {
        out.push(char::from(decoded.digits[0]));
        out.push('.');
        push_ascii(&mut out, &decoded.digits[1..]);
        if decoded.digits.len() == 1 {
            out.push('0');
        }
        out.push_str(if exponent < 0 { "e-" } else { "e+" });
        out.push_str(&format!("{:02}", exponent.unsigned_abs()));
    } else {
        push_fixed(&mut out, &decoded, 14_usize.saturating_add_signed(-exponent as isize));
        while out.ends_with('0') {
            out.pop();
        }
        if out.ends_with('.') {
            out.push('0');
        }
    }
    out
}

/// `%!.*f`: that many digits after the point, at most 26 significant.
fn fixed(value: f64, digits: usize) -> String {
    match decode(value, -(digits as i32), 26) {
        Decoded::Special(text) => text.to_owned(),
        Decoded::Digits(decoded) => {
            let mut out = String::new();
            if decoded.negative {
                out.push('-');
            }
            push_fixed(&mut out, &decoded, digits);
            out
        }
    }
}

fn push_ascii(out: &mut String, digits: &[u8]) {
    out.extend(digits.iter().map(|digit| char::from(*digit)));
}

fn push_fixed(out: &mut String, decoded: &DecimalDigits, precision: usize) {
    let mut digits = decoded.digits.iter().map(|digit| char::from(*digit)).chain(std::iter::repeat('0'));
    // The chain never ends: it goes on with zeros.
    let mut take = || digits.next().unwrap_or('0');
    if decoded.point <= 0 {
        out.push('0');
    } else {
        for _ in 0..decoded.point {
            out.push(take());
        }
    }
    out.push('.');
    let zeros = usize::try_from(-decoded.point).unwrap_or(0).min(precision);
    out.extend(std::iter::repeat_n('0', zeros));
    for _ in zeros..precision {
        out.push(take());
    }
}

/// Decimal digits of a double: `0.digits * 10^point`.
struct DecimalDigits {
    negative: bool,
    digits: Vec<u8>,
    point: i32,
}

enum Decoded {
    Special(&'static str),
    Digits(DecimalDigits),
}

/// SQLite's `sqlite3FpDecode`: digits rounded to `round` significant ones, or to `-round` after the point, at most `max`.
fn decode(value: f64, round: i32, max: usize) -> Decoded {
    if value == 0.0 {
        return Decoded::Digits(DecimalDigits { negative: false, digits: vec![b'0'], point: 1 });
    }
    if value.is_nan() {
        return Decoded::Special("NaN");
    }
    if value.is_infinite() {
        return Decoded::Special(if value < 0.0 { "-Inf" } else { "Inf" });
    }
    let mut exponent = 0;
    let mut pair = [value.abs(), 0.0];
    if pair[0] > 9.223372036854774784e18 {
        while pair[0] > 9.223372036854774784e118 {
            exponent += 100;
            multiply_pair(&mut pair, 1.0e-100, -1.99918998026028836196e-117);
        }
        while pair[0] > 9.223372036854774784e28 {
            exponent += 10;
            multiply_pair(&mut pair, 1.0e-10, -3.6432197315497741579e-27);
        }
        while pair[0] > 9.223372036854774784e18 {
            exponent += 1;
            multiply_pair(&mut pair, 1.0e-01, -5.5511151231257827021e-18);
        }
    } else {
        while pair[0] < 9.223372036854774784e-83 {
            exponent -= 100;
            multiply_pair(&mut pair, 1.0e100, -1.5902891109759918046e83);
        }
        while pair[0] < 9.223372036854774784e7 {
            exponent -= 10;
            multiply_pair(&mut pair, 1.0e10, 0.0);
        }
        while pair[0] < 9.22337203685477478e17 {
            exponent -= 1;
            multiply_pair(&mut pair, 1.0e1, 0.0);
        }
    }
    let whole =
        if pair[1] < 0.0 { pair[0] as u64 - (-pair[1]) as u64 } else { pair[0] as u64 + pair[1] as u64 };
    let mut digits = whole.to_string().into_bytes();
    let mut point = digits.len() as i32 + exponent;
    let mut round = round;
    if round <= 0 {
        round = point - round;
        if round == 0 && digits[0] >= b'5' {
            round = 1;
            digits.insert(0, b'0');
            point += 1;
        }
    }
    if round > 0 && ((round as usize) < digits.len() || digits.len() > max) {
        let keep = (round as usize).min(max);
        let up = digits[keep] >= b'5';
        digits.truncate(keep);
        if up {
            let mut at = keep;
            loop {
                if at == 0 {
                    digits.insert(0, b'1');
                    point += 1;
                    break;
                }
                at -= 1;
                if digits[at] < b'9' {
                    digits[at] += 1;
                    break;
                }
                digits[at] = b'0';
            }
        }
    }
    while digits.len() > 1 && digits.last() == Some(&b'0') {
        digits.pop();
    }
    Decoded::Digits(DecimalDigits { negative: value < 0.0, digits, point })
}

/// Dekker's product of a double-double with a double-double constant, in SQLite's order of operations.
fn multiply_pair(x: &mut [f64; 2], y: f64, yy: f64) {
    let high = |value: f64| f64::from_bits(value.to_bits() & 0xffff_ffff_fc00_0000);
    let hx = high(x[0]);
    let tx = x[0] - hx;
    let hy = high(y);
    let ty = y - hy;
    let p = hx * hy;
    let q = hx * ty + tx * hy;
    let c = p + q;
    let mut cc = p - c + q + tx * ty;
    cc += x[0] * yy + x[1] * y;
    x[0] = c + cc;
    x[1] = c - x[0];
    x[1] += cc;
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// The longest prefix of the text that is a number, as a double (0.0 when there is none): `cast(text as float)`.
pub(crate) fn parse_real(text: &str) -> f64 {
    const LIMIT: u64 = (u64::MAX - 9) / 10;
    let z = text.as_bytes();
    let at = |i: usize| z.get(i).copied().unwrap_or(0);
    let mut i = 0;
    while is_space(at(i)) {
        i += 1;
    }
    let negative = at(i) == b'-';
    if matches!(at(i), b'-' | b'+') {
        i += 1;
    }
    let mut significand: u64 = 0;
    let mut shift: i32 = 0;
    while at(i).is_ascii_digit() {
        significand = significand * 10 + u64::from(at(i) - b'0');
        i += 1;
        if significand >= LIMIT {
            while at(i).is_ascii_digit() {
                i += 1;
                shift = shift.saturating_add(1);
            }
        }
    }
    if at(i) == b'.' {
        i += 1;
        while at(i).is_ascii_digit() {
            if significand < LIMIT {
                significand = significand * 10 + u64::from(at(i) - b'0');
                shift -= 1;
            }
            i += 1;
        }
    }
    let mut exponent: i32 = 0;
    if matches!(at(i), b'e' | b'E') {
        i += 1;
        let minus = at(i) == b'-';
        if matches!(at(i), b'-' | b'+') {
            i += 1;
        }
        while at(i).is_ascii_digit() {
            exponent = if exponent < 10_000 { exponent * 10 + i32::from(at(i) - b'0') } else { 10_000 };
            i += 1;
        }
        if minus {
            exponent = -exponent;
        }
    }
    let sign = if negative { -1.0 } else { 1.0 };
    if significand == 0 {
        return sign * 0.0;
    }
    sign * scale(significand, exponent.saturating_add(shift))
}

/// `significand * 10^exponent` in double-double arithmetic.
fn scale(mut significand: u64, mut exponent: i32) -> f64 {
    while exponent > 0 && significand < (u64::MAX - 0x7ff) / 10 {
        significand *= 10;
        exponent -= 1;
    }
    while exponent < 0 && significand.is_multiple_of(10) {
        significand /= 10;
        exponent += 1;
    }
    let mut pair = [significand as f64, 0.0];
    if pair[0] <= 18_446_744_073_709_549_568.0 {
        let round_trip = pair[0] as u64;
        pair[1] = if significand >= round_trip {
            (significand - round_trip) as f64
        } else {
            -((round_trip - significand) as f64)
        };
    }
    while exponent >= 100 {
        exponent -= 100;
        multiply_pair(&mut pair, 1.0e100, -1.5902891109759918046e83);
    }
    while exponent >= 10 {
        exponent -= 10;
        multiply_pair(&mut pair, 1.0e10, 0.0);
    }
    while exponent >= 1 {
        exponent -= 1;
        multiply_pair(&mut pair, 1.0e1, 0.0);
    }
    while exponent <= -100 {
        exponent += 100;
        multiply_pair(&mut pair, 1.0e-100, -1.99918998026028836196e-117);
    }
    while exponent <= -10 {
        exponent += 10;
        multiply_pair(&mut pair, 1.0e-10, -3.6432197315497741579e-27);
    }
    while exponent <= -1 {
        exponent += 1;
        multiply_pair(&mut pair, 1.0e-01, -5.5511151231257827021e-18);
    }
    let value = pair[0] + pair[1];
    if value.is_nan() { f64::INFINITY } else { value }
}

/// The longest prefix of the text that is a whole number, held within 64 bits (0 when there is none): `cast(text as int)`.
pub(crate) fn parse_integer(text: &str) -> i64 {
    let text = text.trim_start_matches(|c: char| c.is_ascii() && is_space(c as u8));
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let mut value: i64 = 0;
    for byte in digits.bytes().take_while(u8::is_ascii_digit) {
        let digit = i64::from(byte - b'0');
        let next = value
            .checked_mul(10)
            .and_then(|value| if negative { value.checked_sub(digit) } else { value.checked_add(digit) });
        match next {
            Some(next) => value = next,
            None => return if negative { i64::MIN } else { i64::MAX },
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_written_as_sqlite_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "0.0"),
            (1.0, "1.0"),
            (-1.5, "-1.5"),
            (0.1 + 0.2, "0.3"),
            (1e15, "1.0e+15"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1e-5, "1.0e-05"),
            (0.0001, "0.0001"),
            (1.25e300, "1.25e+300"),
            (f64::INFINITY, "Inf"),
        ];
        for (value, expected) in cases {
            assert_eq!(format_real(value), expected);
        }
    }

    #[test]
    fn texts_become_numbers_by_their_longest_prefix() {
        assert_eq!(parse_integer("  12abc"), 12);
        assert_eq!(parse_integer("-99999999999999999999"), i64::MIN);
        assert_eq!(parse_integer("1e3"), 1);
        assert_eq!(parse_integer("x"), 0);
        assert_eq!(parse_real("1.5e2x"), 150.0);
        assert_eq!(parse_real(".5"), 0.5);
        assert_eq!(parse_real("1e999"), f64::INFINITY);
    }

    #[test]
    fn rounds_half_away_from_zero() {
        assert_eq!(round(2.5, 0), 3.0);
        assert_eq!(round(-2.5, 0), -3.0);
        assert_eq!(round(1.005, 2), 1.0);
        assert_eq!(round(2.675, 2), 2.67);
        assert_eq!(round(-0.125, 2), -0.13);
        assert_eq!(round(1e300, 5), 1e300);
    }
}
