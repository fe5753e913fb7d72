//! The gateway before a real API server: what the ledger says of requests, and how watches end on the wire.

use std::collections::BTreeMap;

use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use reqwest::Method;
use serde_json::{Value, json};

use crate::SOON;

const PROTOBUF_WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_and_refused_requests_are_found_by_their_job() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let made = server.create(&job, "main").await;
    let id = made["id"].as_str().unwrap();
    let session = server.session(&job, id).await;
    let path = format!("/k8s/{id}/api/v1/pods?labelSelector=app%3Dweb");
    let get = || server.client().get(format!("{}{path}", server.url()));
    let passed = get().bearer_auth(&session).send().await.unwrap();
    assert_eq!(passed.status(), 200);
    let spoofed = get()
        .bearer_auth(&session)
        .header("impersonate_user", "x")
        .send()
        .await
        .unwrap();
    assert_eq!(spoofed.status(), 403);

    let found = server
        .operator(
            Method::GET,
            &format!("/v1/ledger/records?limit=1000&job={}", job.id()),
        )
        .await;
    let records = found.body["records"].as_array().unwrap();
    let requests: Vec<_> = records
        .iter()
        .filter(|record| record["action"] == "kubernetes.request")
        .filter(|record| record["request"]["label_selector"] == "app=web")
        .collect();
    let outcomes: Vec<_> = requests
        .iter()
        .filter(|record| record["kind"] != "end")
        .map(|record| (record["kind"].clone(), record["outcome"]["status"].clone()))
        .collect();
    assert_eq!(
        outcomes,
        [(json!("start"), Value::Null), (json!("event"), json!(403))],
        "{requests:#?}"
    );
    let owner = &made["owner"];
    for record in requests {
        let identity = &record["identity"];
        for (pointer, expected) in [
            ("/organization/id", &owner["organization_id"]),
            ("/project/id", &owner["pipeline_id"]),
            ("/run/number", &owner["build_number"]),
            ("/job/id", &owner["job_id"]),
            ("/source/commit", &owner["commit"]),
        ] {
            assert_eq!(identity.pointer(pointer), Some(expected), "{pointer}");
        }
    }
}

/// The fields of a protobuf message by number, each with its last value: bytes, or a number as text.
fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = match tag & 7 {
            0 => varint(&mut bytes).to_string().into_bytes(),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                value.to_vec()
            }
            other => panic!("wire type {other}"),
        };
        fields.insert(tag >> 3, value);
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a byte");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

fn text(fields: &BTreeMap<u64, Vec<u8>>, number: u64) -> String {
    String::from_utf8(fields.get(&number).cloned().unwrap_or_default()).unwrap()
}

/// One event as client-go reads it: its type, `apiVersion/kind` of its object, and the object's fields.
fn event(frame: &[u8]) -> (String, String, BTreeMap<u64, Vec<u8>>) {
    let event = fields(frame);
    let extension = fields(&event[&2]);
    let unknown = extension[&1]
        .strip_prefix(b"k8s\0")
        .expect("the mark of Kubernetes' protobuf");
    let unknown = fields(unknown);
    let meta = fields(&unknown[&1]);
    let kind = format!("{}/{}", text(&meta, 1), text(&meta, 2));
    (text(&event, 1), kind, fields(&unknown[&2]))
}

fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        frames.push(frame);
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a frame at the end");
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_a_watch_in_protobuf_ends_with_an_event_like_the_api_servers_own() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("app").start().job("test").run();
    let made = server.create(&job, "main").await;
    let id = made["id"].as_str().unwrap();
    let session = server.session(&job, id).await;
    let watch = async |query: &str| {
        let url = format!(
            "{}/k8s/{id}/api/v1/namespaces?watch=true{query}",
            server.url()
        );
        let request = server.client().get(url).bearer_auth(&session);
        let answer = request.header("accept", PROTOBUF_WATCH).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.headers()["content-type"], PROTOBUF_WATCH);
        answer
    };
    // What the API server itself sends when it ends a watch: nothing is kept from so long ago.
    let theirs = watch("&resourceVersion=1").await.bytes();
    let theirs = tokio::time::timeout(SOON, theirs).await.unwrap().unwrap();
    let events: Vec<_> = frames(&theirs).into_iter().map(event).collect();
    let [(what, kind, status)] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!((what.as_str(), kind.as_str()), ("ERROR", "v1/Status"));
    assert_eq!(
        (text(status, 2), text(status, 4), text(status, 6)),
        ("Failure".into(), "Expired".into(), "410".into())
    );

    let mut ours = watch("").await;
    let mut bytes = ours.chunk().await.unwrap().unwrap().to_vec();
    let released = server.release(&job, id).await;
    assert_eq!(released.status, 200, "{released:?}");
    let rest = async {
        while let Some(chunk) = ours.chunk().await.expect("it ends, and is not broken off") {
            bytes.extend(chunk);
        }
    };
    tokio::time::timeout(SOON, rest).await.expect("it is cut");
    let events: Vec<_> = frames(&bytes).into_iter().map(event).collect();
    let (last, before) = events.split_last().unwrap();
    assert!(!before.is_empty());
    for (what, kind, _) in before {
        assert_eq!((what.as_str(), kind.as_str()), ("ADDED", "v1/Namespace"));
    }
    let (what, kind, status) = last;
    assert_eq!((what.as_str(), kind.as_str()), ("ERROR", "v1/Status"));
    assert_eq!(
        (text(status, 2), text(status, 4), text(status, 6)),
        ("Failure".into(), "NotFound".into(), "404".into())
    );
    let message = text(status, 3);
    assert!(
        message.contains("ended") && message.contains(&job.id().to_string()),
        "{message}"
    );
}
