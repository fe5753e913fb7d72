//! Bodies in JSON and YAML. Only what is looked for is kept: however long a body is, what it takes is a little more
//! than its images.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{Found, NotUnderstood, Workload};
use crate::identity::json;

/// Longest patch of operations that is read, in bytes: each of them is kept while it is looked at.
const OPERATIONS_BYTES_MAX: usize = 256 << 10;

/// One object.
pub(super) fn json(workload: &Workload, body: &[u8]) -> Result<Found, NotUnderstood> {
    let mut found = Found::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = whole(workload, &mut found).deserialize(&mut deserializer);
    read.and_then(|()| deserializer.end())
        .map_err(|_| NotUnderstood::Unreadable)?;
    Ok(found)
}

/// One document. Most clients write JSON where YAML may be, and that is read a hundred times faster.
pub(super) fn yaml(workload: &Workload, body: &[u8]) -> Result<Found, NotUnderstood> {
    if let Ok(found) = json(workload, body) {
        return Ok(found);
    }
    let text = std::str::from_utf8(body).map_err(|_| NotUnderstood::Unreadable)?;
    let mut found = Found::default();
    let read = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        whole(workload, &mut found).deserialize(deserializer)
    });
    read.map_err(|_| NotUnderstood::Unreadable)?;
    Ok(found)
}

/// A list of operations on an object (RFC 6902).
pub(super) fn operations(workload: &Workload, body: &[u8]) -> Result<Found, NotUnderstood> {
    if body.len() > OPERATIONS_BYTES_MAX {
        return Err(NotUnderstood::TooLong);
    }
    let read = json::value(body).map_err(|_| NotUnderstood::Unreadable)?;
    let operations: Vec<Operation> =
        serde_json::from_value(read).map_err(|_| NotUnderstood::Unreadable)?;
    let mut found = Found::default();
    for operation in operations {
        let is_copy = matches!(operation.op.as_str(), "copy" | "move");
        match place(workload, &operation.path) {
            None => {}
            Some(_) if is_copy => return Err(NotUnderstood::Copies),
            Some(place) => operation
                .value
                .map_or(Ok(()), |value| place.read(value, &mut found))
                .map_err(|_| NotUnderstood::Unreadable)?,
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
struct Operation {
    op: String,
    path: String,
    #[serde(default)]
    value: Option<Value>,
}

/// Where in an object something is put, when it can bring images.
enum Place<'a> {
    /// Above the pod's spec, which is reached by these keys.
    Above(&'a [&'a str]),
    /// Containers, or their like.
    List(&'static str),
    /// One of them.
    Item(&'static str),
    /// An image by itself.
    Image,
}

/// The lists of a pod's spec that name images.
const LISTS: [&str; 4] = [
    "containers",
    "initContainers",
    "ephemeralContainers",
    "volumes",
];

fn place<'a>(workload: &'a Workload, pointer: &str) -> Option<Place<'a>> {
    let unescaped = |step: &str| step.replace("~1", "/").replace("~0", "~");
    let steps: Vec<String> = pointer.split('/').skip(1).map(unescaped).collect();
    let common = workload
        .keys
        .iter()
        .zip(&steps)
        .take_while(|(key, step)| key == step)
        .count();
    if common == steps.len() {
        return Some(Place::Above(
            workload.keys.get(common..).unwrap_or_default(),
        ));
    }
    if common < workload.keys.len() {
        return None;
    }
    let below: Vec<&str> = steps.iter().skip(common).map(String::as_str).collect();
    let list = LISTS.into_iter().find(|list| below.first() == Some(list))?;
    match below.as_slice() {
        [_] => Some(Place::List(list)),
        [_, _] => Some(Place::Item(list)),
        [_, _, "image"] if list != "volumes" => Some(Place::Image),
        [_, _, "image", "reference"] => Some(Place::Image),
        [_, _, "image"] => Some(Place::Item("image")),
        _ => None,
    }
}

impl Place<'_> {
    fn read(&self, value: Value, found: &mut Found) -> Result<(), serde_json::Error> {
        let spec = |list: &str, value: Value| {
            Value::Object([(list.to_owned(), value)].into_iter().collect())
        };
        let in_list = |value: Value| Value::Array(vec![value]);
        match self {
            Self::Above(keys) => Along {
                keys,
                is_whole: false,
                found,
            }
            .deserialize(value),
            Self::Image => found.take(spec("containers", in_list(spec("image", value)))),
            Self::Item("image") => found.take(spec("volumes", in_list(spec("image", value)))),
            Self::Item(list) => found.take(spec(list, in_list(value))),
            Self::List(list) => found.take(spec(list, value)),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: Option<String>,
    #[serde(rename = "generateName")]
    generate_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    containers: Option<Vec<Option<Container>>>,
    init_containers: Option<Vec<Option<Container>>>,
    ephemeral_containers: Option<Vec<Option<Container>>>,
    volumes: Option<Vec<Option<Volume>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    image: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Volume {
    image: Option<ImageVolume>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ImageVolume {
    reference: Option<String>,
}

impl Found {
    /// Takes the images of a pod's spec.
    fn take<'de, D: Deserializer<'de>>(&mut self, deserializer: D) -> Result<(), D::Error> {
        let spec = Option::<PodSpec>::deserialize(deserializer)?.unwrap_or_default();
        let lists = [
            spec.containers,
            spec.init_containers,
            spec.ephemeral_containers,
        ];
        let containers = lists.into_iter().flatten().flatten().flatten();
        let volumes = spec.volumes.into_iter().flatten().flatten();
        self.images
            .extend(containers.filter_map(|container| container.image));
        self.images
            .extend(volumes.filter_map(|volume| volume.image?.reference));
        Ok(())
    }
}

const fn whole<'a>(workload: &'a Workload, found: &'a mut Found) -> Along<'a> {
    Along {
        keys: workload.keys,
        is_whole: true,
        found,
    }
}

/// Goes along the keys to a pod's spec, and passes by whatever else there is.
struct Along<'a> {
    keys: &'a [&'a str],
    /// Whether it is a whole object, with its name.
    is_whole: bool,
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Along<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.keys.is_empty() {
            self.found.take(deserializer)
        } else {
            deserializer.deserialize_any(self)
        }
    }
}

impl<'de> Visitor<'de> for Along<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let (mut has_step, mut has_metadata) = (false, false);
        let (step, rest) = self.keys.split_first().unwrap_or((&"", &[]));
        while let Some(key) = members.next_key::<String>()? {
            let is_again = if key == *step {
                std::mem::replace(&mut has_step, true)
            } else if self.is_whole && key == "metadata" {
                std::mem::replace(&mut has_metadata, true)
            } else {
                members.next_value::<IgnoredAny>()?;
                continue;
            };
            if is_again {
                return Err(A::Error::custom("a key is given twice"));
            }
            if key == *step {
                members.next_value_seed(Along {
                    keys: rest,
                    is_whole: false,
                    found: &mut *self.found,
                })?;
            } else {
                let metadata = members
                    .next_value::<Option<Metadata>>()?
                    .unwrap_or_default();
                self.found.name = metadata.name;
                self.found.generate_name = metadata.generate_name;
            }
        }
        Ok(())
    }
}
