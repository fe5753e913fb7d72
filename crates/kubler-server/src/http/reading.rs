//! What every route does the same way: reading a request, and saying that it cannot be read.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use kubler_api::error::{ErrorCode, Problem};
use kubler_core::ids::EnvironmentId;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Api;
use super::error::ApiError;
use crate::broker::{BrokerError, Call};

/// An answer, or a refusal.
pub(super) type Answer<T> = Result<T, ApiError>;
/// What the routes share.
pub(super) type Shared = State<Arc<Api>>;

/// How every route refuses, for the OpenAPI document.
#[derive(utoipa::IntoResponses)]
pub(super) enum Refused {
    /// The request cannot be carried out as it is.
    #[response(status = "4XX", content_type = "application/problem+json")]
    #[allow(dead_code, reason = "it only describes")]
    Request(#[to_schema] Problem),
    /// The server cannot carry it out now.
    #[response(status = "5XX", content_type = "application/problem+json")]
    #[allow(dead_code, reason = "it only describes")]
    Server(#[to_schema] Problem),
}

pub(super) fn refused(call: &Call) -> impl FnOnce(BrokerError) -> ApiError {
    let request_id = call.request_id;
    move |error| ApiError::from_broker(&error, request_id)
}

pub(super) fn environment_id(text: &str, call: &Call) -> Answer<EnvironmentId> {
    text.parse().map_err(|error: kubler_core::ids::InvalidId| {
        ApiError::new(ErrorCode::NotFound, error.to_string()).with_id(call.request_id)
    })
}

pub(super) fn json<T>(body: Result<Json<Object<T>>, JsonRejection>, call: &Call) -> Answer<T> {
    body.map(|Json(Object(body))| body)
        .map_err(|rejection| unreadable(&rejection.body_text()).with_id(call.request_id))
}

/// A JSON object, and nothing else: what is derived takes a list of its fields as well, which no document describes.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = ObjectVisitor(PhantomData);
        deserializer.deserialize_map(visitor).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}

/// A number of a query, within what the OpenAPI document can say: from 0 to the largest of 64 bits with a sign.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let number = u64::try_from(number);
    number
        .map(Some)
        .map_err(|_| D::Error::custom("a number from 0 on is expected"))
}

pub(super) fn unreadable(text: &str) -> ApiError {
    let text: String = text.chars().take(300).collect();
    ApiError::new(ErrorCode::InvalidRequest, text)
}
