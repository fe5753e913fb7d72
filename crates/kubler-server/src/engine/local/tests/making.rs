use std::collections::HashSet;
use std::time::Instant;

use super::*;

const MANIFESTS: &str = r#"
apiVersion: example.test/v1
kind: Widget
metadata: {name: first, namespace: team}
spec: {size: 3}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: plain, namespace: team}
data: {on: "yes"}
---
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.test}
spec:
  group: example.test
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {size: {type: integer}}}}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_is_made_with_its_manifests_and_build_facts_and_removed_without_a_trace() {
    let place = Place::new();
    let engine = place.engine().await;
    let mut environment = environment(1);
    environment
        .resolved
        .manifests
        .insert("m.yaml".into(), MANIFESTS.into());
    let id = environment.id;
    let began = Instant::now();
    engine.provision(&environment).await.unwrap();
    println!("provisioned in {} ms", began.elapsed().as_millis());

    let api = job_client(&engine, id).await;
    let widget = api
        .get("/apis/example.test/v1/namespaces/team/widgets/first")
        .await
        .unwrap();
    assert_eq!(
        widget.json().unwrap().pointer("/spec/size"),
        Some(&Value::from(3)),
        "{}",
        widget.message()
    );
    assert!(
        api.get("/api/v1/namespaces/team/configmaps/plain")
            .await
            .unwrap()
            .is_success()
    );
    assert!(
        api.get("/api/v1/namespaces/default/serviceaccounts/default")
            .await
            .unwrap()
            .is_success()
    );
    c6_build_facts_are_there_bounded_and_harmless(&api, &environment).await;
    assert_eq!(
        tcp_listeners_of(process_of(&place, id)),
        Vec::<String>::new()
    );
    assert_eq!(condition(&engine, id).await, Some(Condition::Whole));

    // Making it again changes nothing.
    let pid = process_of(&place, id);
    engine.provision(&environment).await.unwrap();
    assert_eq!(process_of(&place, id), pid);

    // What an environment consists of, seen from outside while it lives and no more afterwards.
    let before = place.leftovers(&engine, id).await;
    let evidence = engine.remove(id).await.unwrap();
    println!("removed: {evidence:?}");
    assert_eq!(place.leftovers(&engine, id).await, Vec::<String>::new());
    assert!(engine.upstream(id).is_none() && ids(&engine).await.is_empty());
    for part in ["process", "file", "socket", "key", "user", "role"] {
        assert!(
            before.iter().any(|what| what.starts_with(part)),
            "{part} was not even there: {before:?}"
        );
        assert!(
            evidence.looked_for.iter().any(|what| what == part),
            "{part} was not looked for: {evidence:?}"
        );
    }
    // Ending it again succeeds, and so does ending what never was.
    engine.remove(id).await.unwrap();
    engine
        .remove(EnvironmentId::from_random([9; 16]))
        .await
        .unwrap();
    engine.stop(StopMode::EndEverything).await.unwrap();
    assert_eq!(place.processes(), []);
}

async fn c6_build_facts_are_there_bounded_and_harmless(api: &ApiClient, environment: &Environment) {
    let map = api
        .get(&format!(
            "/api/v1/namespaces/default/configmaps/{CONFIG_MAP}"
        ))
        .await
        .unwrap()
        .json()
        .unwrap();
    let expected = [
        ("organization", "acme"),
        ("pipeline", "web"),
        ("build", "42"),
        ("job", "job-1"),
        ("commit", "0123456789abcdef"),
        ("build-url", "https://ci.test/acme/web/builds/42"),
        ("branch", "mallory:feature/$(rm -rf)\u{fffd}\u{fffd}[31m"),
    ];
    for (name, value) in expected {
        assert_eq!(text(&map, &format!("/data/{name}")), value);
    }
    assert_eq!(text(&map, "/data/environment"), environment.id.to_string());
    let namespace = api
        .get("/api/v1/namespaces/default")
        .await
        .unwrap()
        .json()
        .unwrap();
    for object in [&map, &namespace] {
        let labels = object.pointer("/metadata/labels").unwrap();
        let label = |name: &str| {
            labels
                .get(format!("{LABEL_PREFIX}{name}"))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        assert_eq!(
            (label("pipeline"), label("branch")),
            ("web".into(), "mallory-feature---rm--rf----31m".into())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_is_refused_is_said_and_leaves_nothing_behind_after_the_end() {
    let place = Place::new();
    let engine = place.engine().await;
    let mut environment = environment(1);
    let wrong =
        "apiVersion: v1\nkind: Service\nmetadata: {name: wrong}\nspec: {ports: [{port: 99999}]}\n";
    environment
        .resolved
        .manifests
        .insert("wrong.yaml".into(), wrong.into());
    let error = engine.provision(&environment).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Permanent);
    assert!(
        error
            .message
            .contains("`Service/wrong` of manifest `wrong.yaml`")
            && error.message.contains("99999"),
        "{error}"
    );
    assert!(matches!(
        condition(&engine, environment.id).await,
        Some(Condition::Broken { .. })
    ));
    assert!(engine.upstream(environment.id).is_none());
    engine.remove(environment.id).await.unwrap();
    assert_eq!(
        place.leftovers(&engine, environment.id).await,
        Vec::<String>::new()
    );
}

fn process_of(place: &Place, id: EnvironmentId) -> i32 {
    let found: Vec<_> = place
        .processes()
        .into_iter()
        .filter(|(_, subject)| *subject == id.to_string())
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].0
}

/// Local addresses of the listening TCP sockets of a process.
fn tcp_listeners_of(pid: i32) -> Vec<String> {
    let sockets: HashSet<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            Some(
                fs::read_link(entry.path())
                    .ok()?
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        })
        .collect();
    assert!(
        !sockets.is_empty(),
        "no sockets at all: the look itself is broken"
    );
    let mut listeners = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{pid}/net/{table}"))
            .unwrap()
            .lines()
            .skip(1)
        {
            let fields: Vec<_> = line.split_whitespace().collect();
            // State 0A is listening.
            if fields[3] == "0A" && sockets.contains(fields[9]) {
                listeners.push(fields[1].to_owned());
            }
        }
    }
    listeners
}
