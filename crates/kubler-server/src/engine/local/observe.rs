//! Looks at the world: every folder, process, user, role and key that carries an environment's id.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;
use std::sync::Arc;

use kubler_core::ids::EnvironmentId;
use kubler_core::plan::{Condition, Observed, Unremembered};

use super::process::{Process, ProcessRecord};
use super::{Inner, transient};
use crate::engine::EngineError;

/// What was seen, before anything is concluded.
struct Seen {
    folders: BTreeSet<EnvironmentId>,
    processes: BTreeMap<EnvironmentId, Vec<ProcessRecord>>,
    users: BTreeSet<EnvironmentId>,
}

impl Inner {
    pub(super) async fn observe(self: &Arc<Self>) -> Result<Vec<Observed>, EngineError> {
        let folders = self
            .run
            .environments()
            .map_err(|error| transient(format!("the run folder cannot be read: {error}")))?;
        let found = Process::all(&self.installation)
            .map_err(|error| transient(format!("processes cannot be listed: {error}")))?;
        let mut processes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (subject, process) in found {
            if let Ok(id) = EnvironmentId::from_str(&subject) {
                processes.entry(id).or_default().push(process.record());
            }
        }
        let (in_etcd, users) = self
            .etcd
            .environments()
            .await
            .map_err(|error| transient(format!("etcd cannot be asked: {error}")))?;
        let seen = Seen {
            folders: folders.into_iter().collect(),
            processes,
            users,
        };
        let mut all = in_etcd;
        all.extend(&seen.folders);
        all.extend(seen.processes.keys());
        all.extend(self.groups.environments());
        Ok(all
            .into_iter()
            .map(|id| Observed {
                id,
                condition: self.condition(id, &seen),
                // What carries this installation's mark is nobody else's.
                unremembered: Unremembered::Ends,
            })
            .collect())
    }

    fn condition(&self, id: EnvironmentId, seen: &Seen) -> Condition {
        match self.fault(id, seen) {
            None => Condition::Whole,
            Some(message) => Condition::Broken { message },
        }
    }

    fn ended(&self, id: EnvironmentId, how: &str) -> String {
        if self.groups.ran_out_of_memory(id) {
            return "its control plane took more memory at once than its profile allows (`memory_bytes_max`), and was ended by the system".into();
        }
        format!("its control plane {how}")
    }

    fn fault(&self, id: EnvironmentId, seen: &Seen) -> Option<String> {
        let slot = self.slots.lock().get(&id).cloned();
        let known = slot.and_then(|slot| {
            let live = slot.live();
            let live = live.as_ref()?;
            let ending = live.process.ending();
            ending
                .map(|how| self.ended(id, &how))
                .or_else(|| live.excess.get().cloned())
        });
        if known.is_some() {
            return known;
        }
        if !seen.folders.contains(&id) {
            return Some("its folder is missing".into());
        }
        let folder = self.run.environment(id);
        let Some(record) = folder.record().filter(|record| record.ready) else {
            return Some("it was not made to the end".into());
        };
        match seen.processes.get(&id).map(Vec::as_slice) {
            Some([only]) if *only == record.process => {}
            None | Some([]) => return Some(self.ended(id, "is not running")),
            Some(_) => {
                return Some("another process than its control plane carries its mark".into());
            }
        }
        if record.etcd != self.etcd.endpoint() {
            return Some("etcd is at another address than the one it knows".into());
        }
        if !seen.users.contains(&id) {
            return Some("its user in etcd is missing".into());
        }
        (!folder.api_socket().exists()).then(|| "its socket is missing".into())
    }
}
