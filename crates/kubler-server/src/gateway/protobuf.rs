//! The one message of ours that some clients read in protobuf: the event that ends a watch. Controllers in Go ask
//! for protobuf wherever a type is built in. Written by hand from Kubernetes' own definitions, whose field numbers
//! never change.

use bytes::Bytes;
use kubler_core::ids::RequestId;
use prost::Message;

use super::status::Refused;

/// What the API server calls its protobuf; a watch in it also says `stream=watch`.
pub(super) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What an object in protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";

/// `meta/v1.WatchEvent`.
#[derive(Clone, PartialEq, Message)]
struct WatchEvent {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(message, optional, tag = "2")]
    object: Option<RawExtension>,
}

/// `runtime.RawExtension`.
#[derive(Clone, PartialEq, Message)]
struct RawExtension {
    #[prost(bytes = "vec", tag = "1")]
    raw: Vec<u8>,
}

/// `runtime.Unknown`: an object and what it is.
#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

/// `runtime.TypeMeta`.
#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

/// `meta/v1.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    status: String,
    #[prost(string, tag = "3")]
    message: String,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(message, optional, tag = "5")]
    details: Option<StatusDetails>,
    #[prost(int32, tag = "6")]
    code: i32,
}

/// `meta/v1.StatusDetails`.
#[derive(Clone, PartialEq, Message)]
struct StatusDetails {
    #[prost(message, repeated, tag = "4")]
    causes: Vec<StatusCause>,
    #[prost(int32, tag = "5")]
    retry_after_seconds: i32,
}

/// `meta/v1.StatusCause`.
#[derive(Clone, PartialEq, Message)]
struct StatusCause {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    message: String,
}

/// The last frame of a watch that is ended: the event that says why.
pub(super) fn watch_event(refused: &Refused, request_id: RequestId) -> Bytes {
    let object = Unknown {
        type_meta: Some(TypeMeta {
            api_version: "v1".into(),
            kind: "Status".into(),
        }),
        raw: status(refused, request_id).encode_to_vec(),
    };
    let mut raw = MAGIC.to_vec();
    // Writing to a vector cannot fail: it grows.
    let _ = object.encode(&mut raw);
    let event = WatchEvent {
        kind: "ERROR".into(),
        object: Some(RawExtension { raw }),
    }
    .encode_to_vec();
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), event.as_slice()].concat().into()
}

fn status(refused: &Refused, request_id: RequestId) -> Status {
    let cause = |reason: &str, message: String| StatusCause {
        reason: reason.to_owned(),
        message,
    };
    Status {
        status: "Failure".into(),
        message: refused.message.clone(),
        reason: refused.reason.into(),
        details: Some(StatusDetails {
            causes: vec![
                cause(refused.code, refused.message.clone()),
                cause("RequestId", request_id.to_string()),
            ],
            retry_after_seconds: refused
                .retry_seconds
                .and_then(|seconds| i32::try_from(seconds).ok())
                .unwrap_or_default(),
        }),
        code: i32::from(refused.status.as_u16()),
    }
}
