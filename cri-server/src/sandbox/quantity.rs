//! Kubernetes quantities, as far as whole numbers with a suffix: "10M", "512Ki", "1000". Pure.

const SUFFIXES: [(&str, u64); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("", 1),
];

/// `None`: no such quantity, or too large.
pub(super) fn parse(text: &str) -> Option<u64> {
    let digits = text.len()
        - text
            .trim_start_matches(|character: char| character.is_ascii_digit())
            .len();
    let (number, suffix) = text.split_at(digits);
    let (_, factor) = SUFFIXES.iter().find(|(known, _)| *known == suffix)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_with_a_suffix() {
        assert_eq!(parse("10M"), Some(10_000_000));
        assert_eq!(parse("1Ki"), Some(1024));
        assert_eq!(parse("7"), Some(7));
        for bad in ["", "M", "1.5M", "-1", "1X", "99999999999999999999", "99999999P"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
