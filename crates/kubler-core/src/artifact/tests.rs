use http::Method;
use prost::bytes::BufMut as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use rstest::rstest;

use super::*;
use crate::request::ApiRequest;

fn read(method: &Method, target: &str, media_type: &str, body: &[u8]) -> Artifact {
    let request = ApiRequest::parse(method, target).unwrap().into_record();
    let workload = Workload::written_by(&request).expect("it carries a pod template");
    Artifact::read(workload, &request, Some(media_type), Some(body))
}

const PODS: &str = "/api/v1/namespaces/a/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/a/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/a/deployments/web";

#[test]
fn a_deployment_says_its_name_and_every_image_once() {
    let body = br#"{"kind":"Deployment","metadata":{"name":"web","annotations":{"image":"no"}},"spec":{"replicas":2,"template":{
        "metadata":{"name":"inner"},"spec":{"initContainers":[{"name":"i","image":"busybox"}],"containers":[{"name":"w","image":"nginx:1.27"},
        {"name":"x","image":"nginx:1.27"}],"ephemeralContainers":[{"image":"debug@sha256:00"}],
        "volumes":[{"name":"m","image":{"reference":"models/m:1"}},{"name":"e","emptyDir":{}}]}}}}"#;
    let artifact = read(
        &Method::POST,
        DEPLOYMENTS,
        "application/json; charset=utf-8",
        body,
    );
    assert_eq!(
        artifact.images,
        ["nginx:1.27", "busybox", "debug@sha256:00", "models/m:1"]
    );
    assert_eq!(artifact.name.as_deref(), Some("web"));
    assert_eq!(artifact.namespace.as_deref(), Some("a"));
    assert_eq!(
        (artifact.kind.as_str(), artifact.form),
        ("Deployment", Form::Object)
    );
    assert_eq!(artifact.sha256, Some(hex::encode(Sha256::digest(body))));
    assert_eq!(artifact.not_understood, None);
}

#[rstest]
#[case::pod("/api/v1/namespaces/a/pods", "spec")]
#[case::template("/api/v1/namespaces/a/podtemplates", "template.spec")]
#[case::replication("/api/v1/namespaces/a/replicationcontrollers", "spec.template.spec")]
#[case::stateful("/apis/apps/v1/namespaces/a/statefulsets", "spec.template.spec")]
#[case::daemon("/apis/apps/v1/namespaces/a/daemonsets", "spec.template.spec")]
#[case::replica("/apis/apps/v1/namespaces/a/replicasets", "spec.template.spec")]
#[case::job("/apis/batch/v1/namespaces/a/jobs", "spec.template.spec")]
#[case::cron(
    "/apis/batch/v1/namespaces/a/cronjobs",
    "spec.jobTemplate.spec.template.spec"
)]
fn every_kind_with_a_pod_template_is_read_in_every_form(#[case] target: &str, #[case] way: &str) {
    let spec = r#"{"containers":[{"image":"busybox:1"}]}"#.to_owned();
    let json = way
        .rsplit('.')
        .fold(spec, |inner, key| format!(r#"{{"{key}":{inner}}}"#));
    assert_eq!(
        read(&Method::POST, target, "application/json", json.as_bytes()).images,
        ["busybox:1"]
    );
    let named = format!("{target}/x");
    for media_type in [
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ] {
        assert_eq!(
            read(&Method::PATCH, &named, media_type, json.as_bytes()).images,
            ["busybox:1"]
        );
    }
    let pointer = way.replace('.', "/");
    let patch = format!(
        r#"[{{"op":"replace","path":"/{pointer}/containers/0/image","value":"busybox:1"}}]"#
    );
    assert_eq!(
        read(
            &Method::PATCH,
            &named,
            "application/json-patch+json",
            patch.as_bytes()
        )
        .images,
        ["busybox:1"]
    );
    let lines = way.split('.').enumerate();
    let mut yaml: String = lines
        .map(|(depth, key)| format!("{}{key}:\n", "  ".repeat(depth)))
        .collect();
    yaml.push_str(&format!(
        "{}containers: [{{image: 'busybox:1'}}]\n",
        "  ".repeat(way.split('.').count())
    ));
    assert_eq!(
        read(&Method::POST, target, "application/yaml", yaml.as_bytes()).images,
        ["busybox:1"]
    );
    let request = ApiRequest::parse(&Method::POST, target)
        .unwrap()
        .into_record();
    let numbers = Workload::written_by(&request).unwrap().numbers;
    let spec = field(2, &field(2, b"busybox:1"));
    let object = numbers
        .iter()
        .rev()
        .fold(spec, |inner, number| field(*number, &inner));
    let body = [b"k8s\0".as_slice(), &field(2, &object)].concat();
    assert_eq!(
        read(
            &Method::POST,
            target,
            "application/vnd.kubernetes.protobuf",
            &body
        )
        .images,
        ["busybox:1"]
    );
}

/// One field of a message, with its length.
fn field(number: u32, value: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut field);
    encode_varint(value.len() as u64, &mut field);
    field.put_slice(value);
    field
}

#[test]
fn protobuf_says_names_and_every_kind_of_image() {
    let container = |image: &[u8]| [field(1, b"c"), field(2, image)].concat();
    let spec = [
        field(2, &container(b"main")),
        field(20, &container(b"init")),
        field(34, &field(1, &container(b"debug"))),
        field(1, &field(2, &field(30, &field(1, b"volume")))),
        field(7, b"Always"),
    ];
    // A varint among them, which is passed by.
    let metadata = [field(2, b"web-"), vec![0x38, 0x96, 0x01]].concat();
    let pod = [field(1, &metadata), field(2, &spec.concat())].concat();
    let body = [
        b"k8s\0".as_slice(),
        &field(1, &field(2, b"Pod")),
        &field(2, &pod),
    ]
    .concat();
    let artifact = read(
        &Method::POST,
        PODS,
        "application/vnd.kubernetes.protobuf",
        &body,
    );
    assert_eq!(artifact.images, ["main", "init", "debug", "volume"]);
    assert_eq!(artifact.name.as_deref(), Some("web-*"));
    let broken = body.split_last().unwrap().1;
    let artifact = read(
        &Method::POST,
        PODS,
        "application/vnd.kubernetes.protobuf",
        broken,
    );
    assert_eq!(artifact.not_understood, Some(NotUnderstood::Unreadable));
}

#[rstest]
#[case::an_operation_on_all(r#"[{"op":"add","path":"","value":{"spec":{"template":{"spec":{"containers":[{"image":"i"}]}}}}}]"#)]
#[case::on_the_template(
    r#"[{"op":"replace","path":"/spec/template","value":{"spec":{"containers":[{"image":"i"}]}}}]"#
)]
#[case::on_the_list(
    r#"[{"op":"replace","path":"/spec/template/spec/initContainers","value":[{"image":"i"}]}]"#
)]
#[case::on_one(r#"[{"op":"add","path":"/spec/template/spec/containers/-","value":{"image":"i"}}]"#)]
#[case::on_a_volume(
    r#"[{"op":"add","path":"/spec/template/spec/volumes/0","value":{"image":{"reference":"i"}}}]"#
)]
#[case::on_a_volumes_source(
    r#"[{"op":"add","path":"/spec/template/spec/volumes/0/image","value":{"reference":"i"}}]"#
)]
#[case::on_its_reference(
    r#"[{"op":"add","path":"/spec/template/spec/volumes/0/image/reference","value":"i"}]"#
)]
#[case::beside_others(r#"[{"op":"remove","path":"/spec/replicas"},{"op":"test","path":"/metadata/name","value":"web"},
    {"path":"/spec/template/spec/containers/0/image","value":"i","op":"replace"}]"#)]
fn operations_are_read_wherever_they_put_an_image(#[case] patch: &str) {
    let artifact = read(
        &Method::PATCH,
        WEB,
        "application/json-patch+json",
        patch.as_bytes(),
    );
    assert_eq!(
        (artifact.images.as_slice(), artifact.not_understood),
        (["i".to_owned()].as_slice(), None)
    );
    assert_eq!(
        (artifact.name.as_deref(), artifact.form),
        (Some("web"), Form::Patch)
    );
}

#[rstest]
#[case::copied("application/json-patch+json", r#"[{"op":"copy","from":"/metadata/labels/x","path":"/spec/template/spec/containers/0/image"}]"#, NotUnderstood::Copies)]
#[case::twice(
    "application/merge-patch+json",
    r#"{"spec":{"template":{"spec":{"containers":[{"image":"i"}]}}},"spec":{}}"#,
    NotUnderstood::Unreadable
)]
#[case::twice_inside(
    "application/merge-patch+json",
    r#"{"spec":{"template":{"spec":{"containers":[{"image":"i","image":"j"}]}}}}"#,
    NotUnderstood::Unreadable
)]
#[case::twice_escaped(
    "application/merge-patch+json",
    r#"{"spec":{},"\u0073pec":{"template":{}}}"#,
    NotUnderstood::Unreadable
)]
#[case::twice_in_yaml(
    "application/apply-patch+yaml",
    "spec: {}\nspec: {template: {}}\n",
    NotUnderstood::Unreadable
)]
#[case::more_behind("application/merge-patch+json", "{} {}", NotUnderstood::Unreadable)]
#[case::two_documents(
    "application/apply-patch+yaml",
    "a: 1\n---\nb: 1\n",
    NotUnderstood::Unreadable
)]
#[case::a_list("application/merge-patch+json", "[]", NotUnderstood::Unreadable)]
#[case::cbor("application/apply-patch+cbor", "{}", NotUnderstood::MediaType)]
#[case::no_type("", "{}", NotUnderstood::MediaType)]
fn what_has_no_one_meaning_is_not_understood(
    #[case] media_type: &str,
    #[case] body: &str,
    #[case] why: NotUnderstood,
) {
    let artifact = read(&Method::PATCH, WEB, media_type, body.as_bytes());
    assert_eq!(
        (artifact.images.as_slice(), artifact.not_understood),
        ([].as_slice(), Some(why))
    );
    assert!(artifact.sha256.is_some());
}

#[test]
fn yaml_that_takes_from_elsewhere_in_the_text_is_read() {
    let body = b"x: &x\n  containers: [{image: i}]\nspec:\n  template:\n    spec:\n      <<: *x\n";
    let artifact = read(&Method::PATCH, WEB, "application/apply-patch+yaml", body);
    assert_eq!(
        (artifact.images, artifact.form),
        (vec!["i".to_owned()], Form::Apply)
    );
}

#[test]
fn only_what_writes_a_pod_template_is_read() {
    for (method, target) in [
        (Method::GET, WEB),
        (Method::DELETE, WEB),
        (
            Method::PUT,
            "/apis/apps/v1/namespaces/a/deployments/web/scale",
        ),
        (
            Method::PATCH,
            "/apis/apps/v1/namespaces/a/deployments/web/status",
        ),
        (Method::POST, "/api/v1/namespaces/a/pods/x/eviction"),
        (Method::POST, "/api/v1/namespaces/a/pods/x/exec"),
        (Method::POST, "/api/v1/namespaces/a/secrets"),
        (
            Method::POST,
            "/apis/example.com/v1/namespaces/a/deployments",
        ),
    ] {
        let request = ApiRequest::parse(&method, target).unwrap().into_record();
        assert_eq!(Workload::written_by(&request), None, "{method} {target}");
    }
    let debug = read(
        &Method::PATCH,
        "/api/v1/namespaces/a/pods/x/ephemeralcontainers",
        "application/strategic-merge-patch+json",
        br#"{"spec":{"ephemeralContainers":[{"image":"debug"}]}}"#,
    );
    assert_eq!(debug.images, ["debug"]);
}

#[test]
fn c6_l1_what_is_recorded_is_bounded_and_hides_nothing() {
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl";
    let body = format!(
        r#"{{"metadata":{{"name":"a\u202eb"}},"spec":{{"containers":[{{"image":"x/{token}"}},{{"image":"a\u001bb"}}]}}}}"#
    );
    let artifact = read(&Method::POST, PODS, "application/json", body.as_bytes());
    assert_eq!(artifact.images, ["x/[redacted]", "a\u{fffd}b"]);
    assert_eq!(artifact.name.as_deref(), Some("a\u{fffd}b"));
    let many: Vec<_> = (0..1000)
        .map(|n| format!(r#"{{"image":"{}{n}"}}"#, "x".repeat(400)))
        .collect();
    let body = format!(r#"{{"spec":{{"containers":[{}]}}}}"#, many.join(","));
    let artifact = read(&Method::POST, PODS, "application/json", body.as_bytes());
    assert_eq!(
        artifact.images.len() as u64 + artifact.images_left_out,
        1000
    );
    assert!(artifact.images.iter().map(String::len).sum::<usize>() <= IMAGES_BYTES_MAX);
    assert!(
        serde_json::to_vec(&artifact).unwrap().len() < crate::ledger::record::RECORD_BYTES_MAX / 2
    );
}

#[rstest]
#[case("nginx", "docker.io/library/nginx", Some("latest"), None)]
#[case("nginx:1.27", "docker.io/library/nginx", Some("1.27"), None)]
#[case("docker.io/acme/web", "docker.io/acme/web", Some("latest"), None)]
#[case("acme/web:v1", "docker.io/acme/web", Some("v1"), None)]
#[case("localhost:5000/web", "localhost:5000/web", Some("latest"), None)]
#[case(
    "ghcr.io/acme/web:v1@sha256:0123456789012345678901234567890123456789",
    "ghcr.io/acme/web",
    Some("v1"),
    Some("sha256:0123456789012345678901234567890123456789")
)]
#[case(
    "web@sha256:0123456789012345678901234567890123456789",
    "docker.io/library/web",
    None,
    Some("sha256:0123456789012345678901234567890123456789")
)]
fn a_name_is_read_with_all_that_was_left_out(
    #[case] text: &str,
    #[case] repository: &str,
    #[case] tag: Option<&str>,
    #[case] digest: Option<&str>,
) {
    let image = Image::parse(text).unwrap();
    assert_eq!(
        (
            image.repository.as_str(),
            image.tag.as_deref(),
            image.digest.as_deref()
        ),
        (repository, tag, digest)
    );
}

#[rstest]
#[case("")]
#[case("a b")]
#[case("a//b")]
#[case("a:")]
#[case("a@b")]
#[case("ünï")]
fn what_is_no_name_is_none(#[case] text: &str) {
    assert_eq!(Image::parse(text), None);
    assert_eq!(ImageQuery::parse(text), None);
}

#[test]
fn a_query_says_as_much_as_somebody_knows() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let bare = ImageQuery {
        digest: Some(digest.clone()),
        ..ImageQuery::default()
    };
    assert_eq!(ImageQuery::parse(&digest), Some(bare.clone()));
    assert_eq!(ImageQuery::parse(&format!("@{digest}")), Some(bare));
    let web = ImageQuery::parse("acme/web").unwrap();
    assert_eq!(web.repository.as_deref(), Some("docker.io/acme/web"));
    assert_eq!((web.ending.as_deref(), web.tag), (Some("acme/web"), None));
    assert_eq!(ImageQuery::parse("ghcr.io/acme/web").unwrap().ending, None);
}
