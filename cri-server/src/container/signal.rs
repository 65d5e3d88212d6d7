//! Stop signals: CRI's enumeration and the words of image configurations, as numbers of signal(7). Pure.

use proto::cri::v1::Signal;

/// Number of the first real-time signal that programs may use; glibc and musl keep the two or three below it.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// Signals by name, x86-64.
const NAMED: [(&str, u32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

pub(crate) const KILL: u32 = 9;
const TERM: u32 = 15;

/// The signal that ends a container politely: the pod's wish, else the image's, else SIGTERM. A wish of the image that means
/// nothing is SIGTERM, since an image is no request that could be refused.
pub(crate) fn stop_signal(wish: Signal, image: &str) -> u32 {
    match wish {
        Signal::RuntimeDefault => by_name(image).unwrap_or(TERM),
        wish => by_name(cri_name(wish)).unwrap_or(TERM),
    }
}

/// A number as CRI names it.
pub(crate) fn to_cri(number: u32) -> Signal {
    (1..=65)
        .filter_map(|value| Signal::try_from(value).ok())
        .find(|signal| by_name(cri_name(*signal)) == Some(number))
        .unwrap_or(Signal::RuntimeDefault)
}

/// "SIGRTMINPLUS3" as `SIGNAL_SIGRTMINPLUS3`: the enumeration's own word without its prefix.
fn cri_name(signal: Signal) -> &'static str {
    let name = signal.as_str_name();
    name.strip_prefix("SIGNAL_").unwrap_or(name)
}

/// "SIGTERM", "TERM", "15", "SIGRTMIN+3", "SIGRTMAXMINUS1".
fn by_name(text: &str) -> Option<u32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMED.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |rest: &str, sign: char, word: &str| {
        let digits = rest.strip_prefix(sign).or_else(|| rest.strip_prefix(word));
        match (rest, digits) {
            ("", _) => Some(0),
            (_, Some(digits)) => digits.parse::<u32>().ok(),
            (_, None) => None,
        }
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(offset(rest, '+', "PLUS")?)?
    } else {
        let rest = name.strip_prefix("RTMAX")?;
        RTMAX.checked_sub(offset(rest, '-', "MINUS")?)?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_wish_comes_before_the_images() {
        assert_eq!(stop_signal(Signal::Sigusr1, "SIGINT"), 10);
        assert_eq!(stop_signal(Signal::RuntimeDefault, "SIGINT"), 2);
        assert_eq!(stop_signal(Signal::RuntimeDefault, ""), 15);
        assert_eq!(stop_signal(Signal::RuntimeDefault, "SIGNONSENSE"), 15);
    }

    #[test]
    fn every_signal_of_cri_is_known() {
        for number in 1..=65 {
            let signal = Signal::try_from(number).unwrap();
            let known = by_name(cri_name(signal)).unwrap_or_else(|| panic!("{}", signal.as_str_name()));
            assert_eq!(by_name(cri_name(to_cri(known))), Some(known));
        }
    }

    #[test]
    fn image_words_in_all_their_forms() {
        for (word, number) in [
            ("TERM", 15),
            ("sigquit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(by_name(word), Some(number), "{word}");
        }
        for word in ["0", "65", "", "SIGRTMIN+31", "RTMAX-99", "SIG"] {
            assert_eq!(by_name(word), None, "{word}");
        }
    }
}
