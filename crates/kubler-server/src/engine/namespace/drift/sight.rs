//! What is looked at: lists and watches of each kind of object.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kubler_core::environment::{Environment, Phase, Placement};
use kubler_core::host::ENVIRONMENT_LABEL;
use kubler_core::host::drift::changes;
use kubler_core::host::mark::{MARK_ANNOTATION, Mark};
use kubler_core::host::objects::{self, Object};
use serde_json::Value;

use super::super::EngineError;
use super::super::client::{Events, succeeded};
use super::{Keeper, Suspicion, comparable};
use crate::engine::api::Api as _;

/// Objects that are asked for at once.
const PAGE: usize = 500;
/// How long one watch lasts.
const WATCH_FOR: Duration = Duration::from_secs(300);
/// A watch that says nothing for so long is dead: the server ends each before that.
const SILENCE_MAX: Duration = Duration::from_secs(360);
/// How long after a list the next follows: what a watch did not say is seen then.
const LIST_EVERY: Duration = Duration::from_secs(600);
/// Wait between two watches: a server that ends each at once is not flooded.
const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A kind of object that is watched.
pub(super) struct Kind {
    root: &'static str,
    pub(super) plural: &'static str,
    /// One that nobody here made opens a wall, or shuts the environment off.
    pub(super) matters_from_others: bool,
}

const fn kind(root: &'static str, plural: &'static str, matters_from_others: bool) -> Kind {
    Kind {
        root,
        plural,
        matters_from_others,
    }
}

pub(super) static KINDS: [Kind; 6] = [
    kind("/api/v1", "namespaces", false),
    kind("/api/v1", "resourcequotas", false),
    kind("/api/v1", "limitranges", false),
    kind("/api/v1", "serviceaccounts", false),
    kind("/apis/networking.k8s.io/v1", "networkpolicies", true),
    kind("/apis/rbac.authorization.k8s.io/v1", "rolebindings", true),
];

impl Kind {
    fn is_namespace(&self) -> bool {
        self.plural == "namespaces"
    }

    /// All of them, on the whole host; where only ours matter, only ours.
    fn everywhere(&self) -> String {
        let selector = if self.matters_from_others {
            String::new()
        } else {
            format!("labelSelector={ENVIRONMENT_LABEL}&")
        };
        format!("{}/{}?{selector}", self.root, self.plural)
    }

    pub(super) fn path(&self, namespace: &str, name: &str) -> String {
        if self.is_namespace() {
            format!("{}/namespaces/{name}", self.root)
        } else {
            format!(
                "{}/namespaces/{namespace}/{}/{name}",
                self.root, self.plural
            )
        }
    }
}

impl Keeper {
    /// What is not as it was made, and where a watch goes on.
    pub(super) async fn list(
        &self,
        kind: &'static Kind,
    ) -> Result<(Vec<Suspicion>, String), EngineError> {
        // Before the list: what is made meanwhile is no suspicion.
        let mut missing = self.expected(kind);
        let (mut suspicions, mut version, mut next) = (Vec::new(), String::new(), String::new());
        loop {
            let path = format!("{}limit={PAGE}{next}", kind.everywhere());
            let list = succeeded(kind.plural, self.own().get(&path).await)?;
            let list = list.json().unwrap_or_default();
            if version.is_empty() {
                version = text(&list, "/metadata/resourceVersion").to_owned();
            }
            for object in list
                .get("items")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                missing.remove(&place(kind, object));
                suspicions.extend(self.suspicion(kind, object, false));
            }
            match text(&list, "/metadata/continue") {
                "" => break,
                token => next = format!("&continue={token}"),
            }
        }
        for (namespace, name) in missing {
            suspicions.extend(self.doubt(kind, &namespace, &name));
        }
        Ok((suspicions, version))
    }

    /// Every object of this kind that should be there, by namespace and name.
    fn expected(&self, kind: &Kind) -> BTreeSet<(String, String)> {
        let host = &self.inner.host.name;
        let mut all = BTreeSet::new();
        for environment in self.directory.remaining() {
            let Some(placement) = &environment.placement else {
                continue;
            };
            if environment.phase == Phase::Ready && placement.host == *host {
                for object in expected(kind, &environment, placement, None) {
                    all.insert((placement.namespace.clone(), object.name));
                }
            }
        }
        all
    }

    /// Begins to watch.
    pub(super) async fn open(&self, kind: &Kind, version: &str) -> Result<Events, EngineError> {
        let path = format!(
            "{}allowWatchBookmarks=true&resourceVersion={version}",
            kind.everywhere()
        );
        self.own().watch(&path, WATCH_FOR).await.map_err(|error| {
            EngineError::transient(format!("{}: cannot be watched: {error}", kind.plural))
        })
    }

    /// Follows what changes until it is time for another list, or the host has forgotten where we were.
    pub(super) async fn watch(
        &self,
        kind: &'static Kind,
        mut version: String,
        mut suspect: impl FnMut(Suspicion),
    ) -> Result<(), EngineError> {
        let began = Instant::now();
        while began.elapsed() < LIST_EVERY {
            let mut events = self.open(kind, &version).await?;
            // One that breaks is followed by another.
            while let Ok(Ok(Some(event))) = tokio::time::timeout(SILENCE_MAX, events.next()).await {
                let object = event.get("object").unwrap_or(&Value::Null);
                let what = text(&event, "/type");
                if what == "ERROR" {
                    return Ok(());
                }
                if what != "BOOKMARK" {
                    let suspicion = self.suspicion(kind, object, what == "DELETED");
                    suspicion.into_iter().for_each(&mut suspect);
                }
                text(object, "/metadata/resourceVersion").clone_into(&mut version);
            }
            tokio::time::sleep(WATCH_AGAIN_AFTER).await;
        }
        Ok(())
    }

    /// Whether an object that was seen is a reason to look.
    fn suspicion(&self, kind: &'static Kind, live: &Value, is_gone: bool) -> Option<Suspicion> {
        let (namespace, name) = place(kind, live);
        let (environment, placement) = self.environment(&namespace)?;
        let expected = self.wanted(kind, &environment, &placement, live);
        let is_right = match expected.iter().find(|object| object.name == name) {
            None => is_gone || !kind.matters_from_others,
            Some(object) => !is_gone && changes(&comparable(object), live).is_empty(),
        };
        if is_right {
            None
        } else {
            self.doubt(kind, &namespace, &name)
        }
    }

    fn doubt(&self, kind: &'static Kind, namespace: &str, name: &str) -> Option<Suspicion> {
        let (environment, _) = self.environment(namespace)?;
        Some(Suspicion {
            environment: environment.id,
            kind,
            path: kind.path(namespace, name),
        })
    }

    /// What of this kind should be there, when this is what is.
    pub(super) fn wanted(
        &self,
        kind: &Kind,
        environment: &Environment,
        placement: &Placement,
        live: &Value,
    ) -> Vec<Object> {
        let mark = if kind.is_namespace() {
            self.mark(environment, live)
        } else {
            None
        };
        expected(kind, environment, placement, mark.as_deref())
    }

    /// The mark of this very namespace; none for one that somebody made later in its place.
    fn mark(&self, environment: &Environment, live: &Value) -> Option<String> {
        let uid = text(live, "/metadata/uid");
        let annotations = live.pointer("/metadata/annotations");
        let found = annotations.and_then(|all| all.get(MARK_ANNOTATION)?.as_str());
        let public = self.inner.key.verifying_key();
        let holds = found.is_some_and(|found| Mark::verify(found, uid, &public).is_ok());
        let made: Option<jiff::Timestamp> = text(live, "/metadata/creationTimestamp").parse().ok();
        let is_the_first = made
            .zip(environment.ready_at)
            .is_some_and(|(made, ready)| made <= ready);
        (holds || is_the_first).then(|| {
            Mark {
                environment: environment.id,
                namespace_uid: uid.to_owned(),
                deadline: environment.deadline,
            }
            .sign(&self.inner.key)
        })
    }
}

/// What of this kind was made for an environment.
fn expected(
    kind: &Kind,
    environment: &Environment,
    placement: &Placement,
    mark: Option<&str>,
) -> Vec<Object> {
    if kind.is_namespace() {
        return vec![objects::namespace(environment, placement, mark)];
    }
    let collection = format!(
        "{}/namespaces/{}/{}",
        kind.root, placement.namespace, kind.plural
    );
    let mut walls = objects::walls(environment, placement);
    walls.retain(|object| object.collection == collection);
    walls
}

/// Namespace and name; a namespace is in itself.
fn place(kind: &Kind, object: &Value) -> (String, String) {
    let name = text(object, "/metadata/name").to_owned();
    let namespace = if kind.is_namespace() {
        name.clone()
    } else {
        text(object, "/metadata/namespace").to_owned()
    };
    (namespace, name)
}

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default()
}
