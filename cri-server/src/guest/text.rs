//! Text and names that come out of a Machine, made harmless: for messages, logs and ids. Nothing else is checked here.

/// Longest id of a container or exec'd process, bytes (`proto::stdio::MAX_ID`).
pub(crate) const MAX_ID: usize = proto::stdio::MAX_ID;

/// One line of at most `limit` bytes: control characters become spaces, the rest beyond the limit is cut with "...".
pub(crate) fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::with_capacity(text.len().min(limit));
    for character in text.chars() {
        let shown = if character.is_control() { ' ' } else { character };
        if line.len() + shown.len_utf8() > limit {
            line.push_str("...");
            break;
        }
        line.push(shown);
    }
    line
}

/// The last `limit` bytes (or a little less, at a character) of a text with line ends and tabs; escape sequences and other
/// control characters become '?', so that a terminal that shows it obeys no guest.
pub(crate) fn tail(text: &str, limit: usize) -> String {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let tail = text.get(start..).unwrap_or_default();
    tail.chars()
        .filter(|character| *character != '\r')
        .map(|character| match character {
            '\n' | '\t' => character,
            control if control.is_control() => '?',
            other => other,
        })
        .collect()
}

/// Whether `id` can be an id of ours: 1 to 128 letters, digits, '-', '_' and '.'.
pub(crate) fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(plain)
}

/// Whether `address` is of the form "0000:00:05.0".
pub(crate) fn is_pci_address(address: &str) -> bool {
    let bytes = address.as_bytes();
    bytes.len() == 12
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b':',
            10 => *byte == b'.',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_becomes_one_short_line() {
        assert_eq!(one_line("a\x1b[2J\nb\u{85}c", 100), "a [2J b c");
        assert_eq!(one_line("ääää", 5), "ää...");
        assert_eq!(one_line("ok", 2), "ok");
    }

    #[test]
    fn a_tail_keeps_lines_and_begins_at_a_character() {
        assert_eq!(tail("x\r\n\x1b[31mä\n", 100), "x\n?[31mä\n");
        assert_eq!(tail("aä", 1), "");
        assert_eq!(tail("aäb", 3), "äb");
    }

    #[test]
    fn ids_and_addresses_of_another_shape_are_not_believed() {
        assert!(is_id("0a-_.Z"));
        for bad in ["", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(!is_id(bad), "{bad:?}");
        }
        assert!(is_pci_address("0000:00:1f.7"));
        for bad in ["", "0000:00:05", "0000:00:05.00", "../0:00:05.0", "0000-00:05.0"] {
            assert!(!is_pci_address(bad), "{bad:?}");
        }
    }
}
