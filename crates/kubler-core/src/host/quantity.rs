//! Kubernetes' way to write how much: only whether it is one.

/// What may stand behind the number.
const SUFFIXES: [&str; 15] = [
    "", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "n",
];

/// Whether `text` is a quantity that is not negative.
pub fn is_one(text: &str) -> bool {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    is_digits(whole) && is_digits(fraction) && SUFFIXES.contains(&suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_known_from_what_only_looks_like_one() {
        for good in ["0", "20", "500m", "1.5", "512Mi", "1Gi", "2k"] {
            assert!(is_one(good), "{good}");
        }
        for bad in [
            "", "-1", "m", "1.", ".5", "1.2.3", "5 Gi", "5gb", "1e3", "٣",
        ] {
            assert!(!is_one(bad), "{bad}");
        }
    }
}
