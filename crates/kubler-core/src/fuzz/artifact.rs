//! Bodies of requests that carry a pod template. The input is three lines, a method, a target and a media type, and
//! then the body.

use http::Method;
use serde_json::Value;

use crate::artifact::{
    Artifact, BODY_BYTES_MAX, IMAGE_CHARACTERS_MAX, IMAGES_BYTES_MAX, IMAGES_MAX, Image,
    ImageQuery, Workload,
};
use crate::identity::json;
use crate::ledger::record::{Body, Kind, LedgerAction, Record};
use crate::request::ApiRequest;
use crate::text::is_unsafe;

pub(super) fn artifact(input: &[u8]) -> bool {
    let mut lines = input.splitn(4, |byte| *byte == b'\n');
    let mut text = || std::str::from_utf8(lines.next()?).ok();
    let (Some(method), Some(target), Some(media_type)) = (text(), text(), text()) else {
        return false;
    };
    let body = lines.next().unwrap_or_default();
    let Ok(request) = Method::from_bytes(method.as_bytes())
        .map_err(|_| ())
        .and_then(|method| ApiRequest::parse(&method, target).map_err(|_| ()))
    else {
        return false;
    };
    let request = request.into_record();
    let Some(workload) = Workload::written_by(&request) else {
        return false;
    };
    assert!(body.len() <= BODY_BYTES_MAX);
    let artifact = Artifact::read(workload, &request, Some(media_type), Some(body));
    assert_eq!(
        artifact,
        Artifact::read(workload, &request, Some(media_type), Some(body))
    );
    is_bounded(&artifact);
    is_recorded_as_it_is(&artifact);
    for image in &artifact.images {
        has_a_name_that_finds_it(image);
    }
    if artifact.not_understood.is_some() {
        assert!(artifact.images.is_empty() && artifact.images_left_out == 0);
        return false;
    }
    if media_type.ends_with("json") && !media_type.contains("json-patch") {
        reads_what_another_reader_reads(&artifact, body);
    }
    true
}

fn is_bounded(artifact: &Artifact) {
    assert!(artifact.images.len() <= IMAGES_MAX);
    let bytes: usize = artifact.images.iter().map(String::len).sum();
    assert!(bytes <= IMAGES_BYTES_MAX);
    for image in &artifact.images {
        assert!(!image.is_empty());
        assert!(image.chars().count() <= IMAGE_CHARACTERS_MAX + "[redacted]".len());
        assert!(!image.chars().any(is_unsafe));
    }
}

/// The record says the same images as whoever else keeps them.
fn is_recorded_as_it_is(artifact: &Artifact) {
    let mut body = Body::new(Kind::Start, LedgerAction::KubernetesRequest);
    body.artifact = Some(Box::new(artifact.clone()));
    let mut line = Vec::new();
    let sealed = body.seal().expect("an artifact fits into a record");
    sealed.write_line(0, jiff::Timestamp::UNIX_EPOCH, &mut line);
    let record = Record::from_line(&line).expect("the ledger reads what it writes");
    let written = record.body.artifact.expect("the artifact is in it");
    assert!(written.images.is_empty() || written.images == artifact.images);
    let count = |artifact: &Artifact| artifact.images.len() as u64 + artifact.images_left_out;
    assert_eq!(count(&written), count(artifact));
}

fn has_a_name_that_finds_it(image: &str) {
    let (read, query) = (Image::parse(image), ImageQuery::parse(image));
    let Some(read) = read else {
        assert_eq!(query.and_then(|query| query.repository), None, "{image}");
        return;
    };
    let query = query.expect("a name can be searched for");
    // A digest alone reads like a name with a tag, and is searched for as what it looks like.
    let Some(repository) = query.repository else {
        return;
    };
    assert_eq!(repository, read.repository);
    assert!(query.tag.is_none() || query.tag == read.tag);
    assert_eq!(query.digest, read.digest);
    assert!(read.repository.ends_with(read.last()));
}

/// One that keeps the whole of a body, and goes through it by hand.
fn reads_what_another_reader_reads(artifact: &Artifact, body: &[u8]) {
    let Ok(object) = json::object(body, BODY_BYTES_MAX) else {
        return;
    };
    let way: &[&str] = match artifact.kind.as_str() {
        "Pod" => &["/spec"],
        "PodTemplate" => &["/template/spec"],
        "CronJob" => &["/spec/jobTemplate/spec/template/spec"],
        _ => &["/spec/template/spec"],
    };
    let object = Value::Object(object);
    let spec = object.pointer(way[0]).unwrap_or(&Value::Null);
    let list = |name: &str| spec[name].as_array().cloned().unwrap_or_default();
    let mut images: Vec<Value> = Vec::new();
    for name in ["containers", "initContainers", "ephemeralContainers"] {
        images.extend(
            list(name)
                .iter()
                .map(|container| container["image"].clone()),
        );
    }
    images.extend(
        list("volumes")
            .iter()
            .map(|volume| volume["image"]["reference"].clone()),
    );
    let named = images
        .iter()
        .filter_map(Value::as_str)
        .filter(|image| !image.is_empty());
    let named: std::collections::BTreeSet<&str> = named.collect();
    assert_eq!(named.is_empty(), artifact.images.is_empty());
    let is_plain = |image: &&&str| {
        image.bytes().all(|byte| byte.is_ascii_graphic())
            && image.len() < 64
            && !image.contains("eyJ")
    };
    for image in named.iter().filter(is_plain) {
        let is_there = artifact.images.iter().any(|found| found == *image);
        assert!(is_there || artifact.images_left_out > 0, "{image}");
    }
}
