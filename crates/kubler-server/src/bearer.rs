//! The bearer token of a request: read in one way, whoever it is for.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

/// What the `Authorization` header holds.
pub(crate) enum Bearer<'a> {
    /// There is none.
    Absent,
    /// A token.
    Token(&'a str),
    /// Another scheme, no text, or several of them: nobody guesses which one was meant.
    Malformed,
}

/// Reads it.
pub(crate) fn token(headers: &HeaderMap) -> Bearer<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => Bearer::Absent,
        (Some(value), None) => value
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or(Bearer::Malformed, |(_, token)| Bearer::Token(token.trim())),
        (Some(_), Some(_)) => Bearer::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        match token(&headers) {
            Bearer::Absent => None,
            Bearer::Token(token) => Some(token.to_owned()),
            Bearer::Malformed => Some("malformed".into()),
        }
    }

    #[test]
    fn one_bearer_token_is_read_and_nothing_is_guessed() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["Bearer abc"]).unwrap(), "abc");
        assert_eq!(read(&["bEARER  abc "]).unwrap(), "abc");
        for several in [
            &["Bearer a", "Bearer b"][..],
            &["Basic YTpi"],
            &["Bearer"],
            &["Bearerabc"],
        ] {
            assert_eq!(read(several).unwrap(), "malformed", "{several:?}");
        }
    }
}
