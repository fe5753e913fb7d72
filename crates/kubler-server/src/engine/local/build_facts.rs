//! What an environment says about the build it was made for, as objects of a cluster of its own.

pub use kubler_core::build_facts::{CONFIG_MAP, LABEL_PREFIX};
use kubler_core::build_facts::{config_map, labels};
use kubler_core::environment::Environment;
use serde_json::{Value, json};

/// The objects that carry it: the ConfigMap, and the default namespace's labels.
pub(super) fn objects(environment: &Environment) -> [Value; 2] {
    let labels = labels(environment);
    [
        config_map(environment, "default"),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": labels}}),
    ]
}
