//! The timestamps of CRI log lines: RFC 3339 in UTC with nine digits of fraction, always 30 bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: u64 = 86_400;

/// A moment as a log line begins with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timestamp(String);

impl Timestamp {
    /// The present moment; a clock before 1970 counts as 1970.
    pub(crate) fn now() -> Self {
        Self::after_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// The moment that long after 1970-01-01 00:00:00 UTC.
    pub(crate) fn after_epoch(elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs();
        let (year, month, day) = date(seconds / SECONDS_PER_DAY);
        let second_of_day = seconds % SECONDS_PER_DAY;
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let nanos = elapsed.subsec_nanos();
        Self(format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z"
        ))
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The Gregorian date that many days after 1970-01-01. Years are counted from March, so that the leap day comes last, in
/// cycles of 400 years, which all have the same length.
fn date(days_after_epoch: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468; // from 0000-03-01
    const CYCLE: u64 = 146_097;
    let days = days_after_epoch + DAYS_TO_EPOCH;
    let day_of_cycle = days % CYCLE;
    let leap_days = day_of_cycle / 1460 + day_of_cycle / 146_096 - day_of_cycle / 36_524;
    let year_of_cycle = (day_of_cycle - leap_days) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // Five months from March on have 153 days, and so have the next five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = days / CYCLE * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_cri_documentation() {
        let moment = Duration::new(1_475_712_557, 669_794_202);
        assert_eq!(
            Timestamp::after_epoch(moment).as_str(),
            "2016-10-06T00:09:17.669794202Z"
        );
        assert_eq!(
            Timestamp::after_epoch(Duration::ZERO).as_str(),
            "1970-01-01T00:00:00.000000000Z"
        );
    }

    #[test]
    fn every_day_of_600_years_follows_the_day_before() {
        let mut expected = (1970, 1, 1);
        for day in 0..365 * 600 {
            assert_eq!(date(day), expected);
            let (year, month, day) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (month, day) if day == length => (year, month + 1, 1),
                (month, day) => (year, month, day + 1),
            };
        }
    }
}
