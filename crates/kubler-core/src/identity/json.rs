//! JSON as strangers send it, read strictly: one meaning or none.
//!
//! Where two readers of one text may disagree (a key that stands there twice: first or last?), somebody
//! will make them disagree. So a repeated key is refused at any depth, and so is anything but one object.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text is not accepted as a JSON object. Says nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonFault {
    /// Longer than its bound.
    #[error("the text is longer than its bound")]
    TooLarge,
    /// A key stands in one object twice.
    #[error("a key stands in one object twice")]
    DuplicateKey,
    /// Not JSON, or followed by something else.
    #[error("the text is not JSON")]
    NotJson,
    /// JSON, but not an object.
    #[error("the text is not a JSON object")]
    NotAnObject,
}

/// Reads one JSON object of at most `bytes_max` bytes.
///
/// # Errors
/// See [`JsonFault`].
pub fn object(text: &[u8], bytes_max: usize) -> Result<Map<String, Value>, JsonFault> {
    if text.len() > bytes_max {
        return Err(JsonFault::TooLarge);
    }
    match value(text)? {
        Value::Object(object) => Ok(object),
        _ => Err(JsonFault::NotAnObject),
    }
}

/// Reads any JSON value; whoever calls has bounded the text.
///
/// # Errors
/// See [`JsonFault`].
pub(crate) fn value(text: &[u8]) -> Result<Value, JsonFault> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Strict
        .deserialize(&mut deserializer)
        .map_err(|error| fault(&error))?;
    deserializer.end().map_err(|_| JsonFault::NotJson)?;
    Ok(value)
}

/// Not a word that a JSON parser says of its own accord.
const DUPLICATE: &str = "kubler: duplicate key";

fn fault(error: &serde_json::Error) -> JsonFault {
    // serde_json keeps a custom message apart from the input, so no text of a stranger can look like this.
    if error.is_data() && error.to_string().starts_with(DUPLICATE) {
        JsonFault::DuplicateKey
    } else {
        JsonFault::NotJson
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(Self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(DUPLICATE));
            }
            object.insert(key, members.next_value_seed(Self)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::at_the_top(r#"{"aud":"a","aud":"b"}"#)]
    #[case::the_same_value(r#"{"aud":"a","aud":"a"}"#)]
    #[case::nested(r#"{"a":{"b":1,"b":2}}"#)]
    #[case::in_a_list(r#"{"a":[{"b":1},{"c":[{"d":1,"d":2}]}]}"#)]
    #[case::one_escaped(r#"{"aud":"a","\u0061ud":"b"}"#)]
    #[case::null_first(r#"{"exp":null,"exp":1}"#)]
    fn t2_a_repeated_key_is_refused_at_any_depth(#[case] text: &str) {
        assert_eq!(object(text.as_bytes(), 1024), Err(JsonFault::DuplicateKey));
    }

    #[rstest]
    #[case::nothing("")]
    #[case::trailing(r#"{"a":1}{"b":2}"#)]
    #[case::trailing_text(r#"{"a":1} x"#)]
    #[case::comment("{/*x*/}")]
    #[case::trailing_comma(r#"{"a":1,}"#)]
    #[case::not_a_number(r#"{"a":NaN}"#)]
    #[case::huge_number(r#"{"a":1e999}"#)]
    #[case::lone_surrogate(r#"{"a":"\ud800"}"#)]
    #[case::raw_control("{\"a\":\"\n\"}")]
    #[case::byte_order_mark("\u{feff}{}")]
    #[case::imitates_our_own_message(r#"{"kubler: duplicate key"}"#)]
    fn t2_what_is_not_json_is_refused(#[case] text: &str) {
        assert_eq!(object(text.as_bytes(), 1024), Err(JsonFault::NotJson));
    }

    #[rstest]
    #[case("[]")]
    #[case("1")]
    #[case("null")]
    #[case(r#""{}""#)]
    fn t2_only_an_object_is_accepted(#[case] text: &str) {
        assert_eq!(object(text.as_bytes(), 1024), Err(JsonFault::NotAnObject));
    }

    #[test]
    fn t2_depth_and_length_are_bounded() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(4000), "]".repeat(4000));
        assert_eq!(object(deep.as_bytes(), 100_000), Err(JsonFault::NotJson));
        assert_eq!(object(br#"{"a":1}"#, 6), Err(JsonFault::TooLarge));
        assert!(object(br#"{"a":1}"#, 7).is_ok());
        assert_eq!(
            object(&[b'{', b'"', 0xff, b'"', b':', b'1', b'}'], 99),
            Err(JsonFault::NotJson)
        );
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn without_repeats_it_reads_what_serde_json_reads(members in prop::collection::btree_map(any::<String>(), json(), 0..6)) {
            let text = serde_json::to_vec(&members).unwrap();
            let expected: Map<String, Value> = serde_json::from_slice(&text).unwrap();
            prop_assert_eq!(object(&text, text.len()), Ok(expected));
        }
    }
}
