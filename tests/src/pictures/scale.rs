//! Axes: where their ticks are, and what is written there.

use crate::dashboard::Unit;

/// Steps between ticks that people can count in.
const NICE: [f64; 4] = [1.0, 2.0, 2.5, 5.0];

/// A step that divides `span` into at most `most` parts.
pub fn step(span: f64, most: u32) -> f64 {
    let smallest = span / f64::from(most);
    if smallest <= 0.0 || !smallest.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(smallest.log10().floor());
    NICE.into_iter()
        .map(|nice| nice * power)
        .find(|step| *step >= smallest * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// The ticks from `low` to `high`.
pub fn ticks(low: f64, high: f64, most: u32) -> Vec<f64> {
    let step = step(high - low, most);
    let first = (low / step).ceil();
    let count = ((high - first * step) / step + 1e-9).floor().max(0.0);
    (0..=count as u32)
        .map(|i| (first + f64::from(i)) * step)
        .collect()
}

/// How values of a unit are written where the largest is `most`: a factor and what follows the number.
pub fn written(unit: Unit, most: f64) -> (f64, &'static str) {
    match unit {
        Unit::Share => (100.0, " %"),
        Unit::Seconds | Unit::SecondsPerHour => match most {
            m if m < 1e-6 => (1e9, " ns"),
            m if m < 1e-3 => (1e6, " µs"),
            m if m < 1.0 => (1e3, " ms"),
            m if m < 600.0 => (1.0, " s"),
            _ => (1.0 / 60.0, " min"),
        },
        _ if most >= 100_000.0 => (1e-3, " k"),
        _ => (1.0, ""),
    }
}

/// What is written beside the title.
pub const fn caption(unit: Unit) -> &'static str {
    match unit {
        Unit::Count | Unit::Seconds | Unit::Share => "",
        Unit::CallsPerHour => "calls/h",
        Unit::CallsPerMinute => "calls/min",
        Unit::CallsPerSecond => "calls/s",
        Unit::PerSecond => "1/s",
        Unit::SecondsPerHour => "per hour",
    }
}

/// A number without zeros at its end, and with a space between thousands.
pub fn number(value: f64) -> String {
    if value >= 10_000.0 {
        let whole = value.round() as u64;
        return format!("{} {:03}", whole / 1000, whole % 1000);
    }
    let digits = if value.abs() >= 100.0 { 0 } else { 2 };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_can_be_counted_in() {
        assert_eq!(ticks(0.0, 100.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(0.0, 7.0, 4), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(ticks(0.0, 0.0, 5), [0.0]);
    }

    #[test]
    fn values_are_written_in_a_unit_of_their_size() {
        assert_eq!(written(Unit::Seconds, 0.0004), (1e6, " µs"));
        assert_eq!(written(Unit::Seconds, 30.0), (1.0, " s"));
        assert_eq!(number(12.50), "12.5");
        assert_eq!(number(1200.0), "1200");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(40_000.0), "40 000");
    }
}
