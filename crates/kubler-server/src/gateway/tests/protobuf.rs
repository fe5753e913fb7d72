//! Watches in protobuf, as controllers in Go ask for them.

use axum::body::Body;
use http::StatusCode;
use kubler_core::environment::EndReason;

use super::upstream::PROTOBUF;
use super::world::{World, next_bytes};

/// A frame of five bytes.
const FRAME: &[u8] = b"\0\0\0\x05abcde";

async fn watch(world: &World) -> Body {
    let request = world
        .request("GET", "/api/v1/pods?watch=1")
        .header("accept", PROTOBUF);
    let response = world.send(request).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], PROTOBUF);
    let mut body = response.into_body();
    world.upstream.send_bytes(FRAME);
    assert_eq!(next_bytes(&mut body).await.unwrap().unwrap(), FRAME);
    body
}

#[tokio::test]
async fn e1_a_watch_in_protobuf_ends_with_a_frame_that_says_why() {
    let world = World::new().await;
    let mut body = watch(&world).await;
    world.release(EndReason::Released);
    let last = next_bytes(&mut body).await.unwrap().unwrap();
    assert!(next_bytes(&mut body).await.is_none());
    let (length, event) = last.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, event.len());
    // `WatchEvent.type`, field 1; the object, field 2, begins with the mark of Kubernetes' protobuf.
    assert_eq!(event.first_chunk(), Some(b"\x0a\x05ERROR\x12"));
    let text = String::from_utf8_lossy(event);
    for word in [
        "k8s\0",
        "Status",
        "Failure",
        "NotFound",
        "EnvironmentEnded",
        "its job released it",
    ] {
        assert!(text.contains(word), "`{word}` is not in {text:?}");
    }
    assert_eq!(
        world.outcome().await.close_reason.as_deref(),
        Some("released")
    );
}

#[tokio::test]
async fn e1_half_a_frame_is_never_followed_by_another() {
    for half in [&FRAME[..2], &FRAME[..4], &FRAME[..8]] {
        let world = World::new().await;
        let mut body = watch(&world).await;
        world.upstream.send_bytes(half);
        assert_eq!(next_bytes(&mut body).await.unwrap().unwrap(), half);
        world.release(EndReason::Released);
        assert!(
            next_bytes(&mut body).await.unwrap().is_err(),
            "the connection is broken off"
        );
    }
}
