//! Values with units as people write them (`250ms`, `64MiB`, `400k`, `20%`) → numbers, and back.
//!
//! Decimal arithmetic is exact: `1.5s` is 1,500,000 µs and `0.1us` is an error rather than zero.

use std::time::Duration;

/// Why a value with a unit cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It does not begin with a number.
    #[error("not a number")]
    NotANumber,
    /// A number alone could be read in several ways.
    #[error("the unit is missing; one of: {0}")]
    MissingUnit(&'static str),
    /// Letters that are no unit of this quantity.
    #[error("unknown unit; one of: {0}")]
    UnknownUnit(&'static str),
    /// Below zero.
    #[error("must not be negative")]
    Negative,
    /// A part of the smallest unit.
    #[error("must be a whole number of {0}")]
    TooFine(&'static str),
    /// More digits or a larger value than can be held.
    #[error("too large")]
    TooLarge,
}

const DURATION_UNITS: [(&str, u128); 5] =
    [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];
const SIZE_UNITS: [(&str, u128); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const COUNT_UNITS: [(&str, u128); 4] = [("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];

/// A duration such as `250ms`, `1.5s`, `2m`: a whole number of microseconds.
///
/// # Errors
/// When it is not a number followed by one of the units.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let micros = scaled(text, &DURATION_UNITS, "us, ms, s, m, h", "microseconds")?;
    Ok(Duration::from_micros(micros))
}

/// A size such as `64MiB` or `1GB`, in bytes.
///
/// # Errors
/// When it is not a number followed by one of the units.
pub fn size(text: &str) -> Result<u64, UnitError> {
    scaled(text, &SIZE_UNITS, "B, KB, MB, GB, KiB, MiB, GiB, TiB", "bytes")
}

/// A whole number, `400000`, `400_000` or `400k`.
///
/// # Errors
/// When it is not a whole number, perhaps followed by `k`, `M` or `G`.
pub fn count(text: &str) -> Result<u64, UnitError> {
    scaled(text, &COUNT_UNITS, "k, M, G, or none", "ones")
}

/// Any finite number.
///
/// # Errors
/// When it is not a number.
pub fn number(text: &str) -> Result<f64, UnitError> {
    let plain = text.replace('_', "");
    let digits = plain.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    let value: f64 = plain.parse().map_err(|_not_a_float: std::num::ParseFloatError| UnitError::NotANumber)?;
    match (digits, value.is_finite()) {
        (false, _) => Err(UnitError::NotANumber),
        (true, false) => Err(UnitError::TooLarge),
        (true, true) => Ok(value),
    }
}

/// A share of one: `0.2` or `20%`.
///
/// # Errors
/// When it is not a number, perhaps followed by `%`.
pub fn share(text: &str) -> Result<f64, UnitError> {
    match text.strip_suffix('%') {
        Some(percent) => Ok(number(percent.trim_end())? / 100.0),
        None => number(text),
    }
}

/// The shortest way to write a duration that [`duration`] reads back exactly.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros == 0 {
        return "0s".to_owned();
    }
    largest_unit(micros, &DURATION_UNITS)
}

/// The shortest way to write a size in binary units that [`size`] reads back exactly.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    const BINARY: [(&str, u128); 5] =
        [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    if bytes == 0 { "0B".to_owned() } else { largest_unit(u128::from(bytes), &BINARY) }
}

fn largest_unit(value: u128, units: &[(&str, u128)]) -> String {
    let fits = units.iter().rev().find(|(_, scale)| value.is_multiple_of(*scale));
    let (name, scale) = fits.copied().unwrap_or(("", 1));
    format!("{}{name}", value / scale)
}

/// Reads `digits[.digits][ ]unit` exactly.
fn scaled(
    text: &str,
    units: &[(&str, u128)],
    expected: &'static str,
    smallest: &'static str,
) -> Result<u64, UnitError> {
    if text.starts_with('-') {
        return Err(UnitError::Negative);
    }
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '_')).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (mantissa, decimals) = decimal(digits)?;
    let unit = unit.trim_start();
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(if unit.is_empty() { UnitError::MissingUnit(expected) } else { UnitError::UnknownUnit(expected) });
    };
    // Below 10²⁴ × 10¹³, well inside 128 bits.
    let product = mantissa * scale;
    let divisor = 10_u128.pow(decimals);
    if !product.is_multiple_of(divisor) {
        return Err(UnitError::TooFine(smallest));
    }
    u64::try_from(product / divisor).map_err(|_wide: std::num::TryFromIntError| UnitError::TooLarge)
}

/// `12.50` → (1250, 2). At most 24 digits.
fn decimal(digits: &str) -> Result<(u128, u32), UnitError> {
    let (mut mantissa, mut decimals, mut count, mut point) = (0_u128, 0_u32, 0_u32, false);
    for byte in digits.bytes() {
        match byte {
            b'0'..=b'9' => {
                mantissa = mantissa * 10 + u128::from(byte - b'0');
                count += 1;
                decimals += u32::from(point);
            }
            b'_' if count > 0 => {}
            b'.' if !point && count > 0 => point = true,
            _ => return Err(UnitError::NotANumber),
        }
        if count > 24 {
            return Err(UnitError::TooLarge);
        }
    }
    let ends_in_digit = digits.ends_with(|c: char| c.is_ascii_digit());
    if ends_in_digit { Ok((mantissa, decimals)) } else { Err(UnitError::NotANumber) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_exactly() {
        for (text, micros) in [
            ("250ms", 250_000),
            ("1s", 1_000_000),
            ("1.5s", 1_500_000),
            ("2m", 120_000_000),
            ("0.5 h", 1_800_000_000),
            ("7us", 7),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        assert!(matches!(duration("5"), Err(UnitError::MissingUnit(_))));
        assert!(matches!(duration("5 minutes"), Err(UnitError::UnknownUnit(_))));
        assert!(matches!(duration("5S"), Err(UnitError::UnknownUnit(_))));
        assert_eq!(duration("-1s"), Err(UnitError::Negative));
        assert_eq!(duration("0.1us"), Err(UnitError::TooFine("microseconds")));
        assert_eq!(duration("99999999999999h"), Err(UnitError::TooLarge));
        assert_eq!(duration("9999999999999999999999999999s"), Err(UnitError::TooLarge));
        for text in ["", "s", "1.s", "1..5s", ".5s", "_1s", "1m30s x"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_binary_or_decimal_by_name() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert_eq!(size("1.5KiB"), Ok(1536));
        assert_eq!(size("12B"), Ok(12));
        assert!(matches!(size("64"), Err(UnitError::MissingUnit(_))));
        assert!(matches!(size("64mb"), Err(UnitError::UnknownUnit(_))));
    }

    #[test]
    fn counts_and_shares() {
        assert_eq!(count("421k"), Ok(421_000));
        assert_eq!(count("400_000"), Ok(400_000));
        assert_eq!(count("1.5M"), Ok(1_500_000));
        assert_eq!(count("1.5"), Err(UnitError::TooFine("ones")));
        assert_eq!(share("20%"), Ok(0.2));
        assert_eq!(share("7%"), Ok(0.07));
        assert_eq!(share("0.2"), Ok(0.2));
        for text in ["nan", "inf", "1e999", "infinity", "", "%", "0x10"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        bolero::check!().with_type::<u64>().for_each(|&value| {
            let written = Duration::from_micros(value);
            assert_eq!(duration(&format_duration(written)), Ok(written));
            assert_eq!(size(&format_size(value)), Ok(value));
            assert_eq!(count(&value.to_string()), Ok(value));
        });
    }

    #[test]
    fn any_text_is_an_answer() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = (duration(&text), size(&text), count(&text), number(&text), share(&text));
        });
    }
}
