//! Namespaces on hosts that look like environments' and that the store does not know. Those that are surely ours end at
//! their deadline, by the plan; about the others somebody is told.

use std::collections::BTreeSet;

use crate::directory::Directory;
use crate::engine::{Standing, Staying, Stays};

/// Most namespaces that are remembered as told.
const TOLD_MAX: usize = 10_000;

/// What stays on a host and has no environment in the store, alive or dead.
pub fn unremembered<'a>(
    directory: &'a Directory,
    standing: &'a Standing,
) -> impl Iterator<Item = &'a Staying> {
    let is_known = |it: &&Staying| it.environment.is_some_and(|id| directory.get(id).is_some());
    standing.staying.iter().filter(move |it| !is_known(it))
}

/// What was told already: each namespace is told once.
#[derive(Debug, Default)]
pub struct Told(BTreeSet<(String, String)>);

impl Told {
    /// Tells what a look at a host found.
    pub fn tell(&mut self, directory: &Directory, standing: &Standing) {
        let host = &standing.host.name;
        for staying in unremembered(directory, standing) {
            if self.0.len() >= TOLD_MAX {
                self.0.clear();
            }
            let namespace = &staying.namespace;
            if !self.0.insert((host.clone(), namespace.clone())) {
                continue;
            }
            match staying.why {
                Stays::Until(deadline) => {
                    tracing::warn!(host, namespace, %deadline, "a namespace of ours that the store does not know: it ends at its deadline");
                }
                Stays::Untouched(why) => {
                    tracing::error!(host, namespace, %why, "a namespace looks like an environment's, and nothing says that it is ours: it is not touched");
                }
            }
        }
    }
}
