//! Ends an environment and looks whether anything of it is left. Works from its id alone, from any half-made
//! state, and any number of times.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use kubler_core::ids::EnvironmentId;
use tokio::sync::OwnedMutexGuard;

use super::process::Process;
use super::{Inner, Slot, transient};
use crate::crash::{self, Point};
use crate::engine::{EngineError, Evidence};

/// Ends it, looks, and forgets it.
pub(super) async fn remove(
    inner: &Arc<Inner>,
    id: EnvironmentId,
    slot: &Arc<Slot>,
    guard: &OwnedMutexGuard<()>,
) -> Result<Evidence, EngineError> {
    let evidence = take_away(inner, id, slot, guard).await?;
    let mut slots = inner.slots.lock();
    // The map's and ours: whoever else holds it waits for the work and must find the same one.
    if Arc::strong_count(slot) == 2 {
        slots.remove(&id);
    }
    Ok(evidence)
}

/// The same for whoever goes on with the environment.
pub(super) async fn take_away(
    inner: &Arc<Inner>,
    id: EnvironmentId,
    slot: &Slot,
    _guard: &OwnedMutexGuard<()>,
) -> Result<Evidence, EngineError> {
    let began = Instant::now();
    let mut evidence = Evidence::default();
    let mut note = |what: &str| {
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        evidence.milliseconds.insert(what.to_owned(), milliseconds);
    };
    end_processes(inner, id, slot).await?;
    crash::at(Point::ControlPlaneEnded);
    note("process_ended");
    let groups = inner.groups.remove(id).await;
    groups
        .map_err(|error| transient(format!("its control group cannot be taken away: {error}")))?;
    inner
        .etcd
        .expel(id)
        .await
        .map_err(|error| transient(format!("its keys cannot be taken away: {error}")))?;
    note("keys_deleted");
    let folder = inner.run.environment(id);
    folder
        .remove()
        .map_err(|error| transient(format!("its folder cannot be taken away: {error}")))?;
    crash::at(Point::FolderDeleted);
    note("files_deleted");
    let looked_for = look(inner, id).await?;
    crash::at(Point::Looked);
    note("verified");
    evidence.looked_for = looked_for;
    Ok(evidence)
}

/// Ends the control plane we know, and every process that carries the mark, whether anybody wrote it down or not.
async fn end_processes(inner: &Inner, id: EnvironmentId, slot: &Slot) -> Result<(), EngineError> {
    let known = slot.live().take().map(|live| (live.process, live.egress));
    let wrong =
        |error: std::io::Error| transient(format!("its control plane does not end: {error}"));
    if let Some((process, egress)) = &known {
        egress.close();
        process.kill().await.map_err(wrong)?;
        egress.end().await;
    }
    for ended in join_all(marked(inner, id)?.iter().map(Process::kill)).await {
        ended.map_err(wrong)?;
    }
    Ok(())
}

fn marked(inner: &Inner, id: EnvironmentId) -> Result<Vec<Process>, EngineError> {
    let all = Process::all(&inner.installation)
        .map_err(|error| transient(format!("processes cannot be listed: {error}")))?;
    let name = id.to_string();
    Ok(all
        .into_iter()
        .filter(|(subject, _)| *subject == name)
        .map(|(_, process)| process)
        .collect())
}

/// Looks for everything an environment consists of; gives what was looked for when nothing of it was found.
async fn look(inner: &Inner, id: EnvironmentId) -> Result<Vec<String>, EngineError> {
    let traces = inner
        .etcd
        .traces(id)
        .await
        .map_err(|error| transient(format!("etcd cannot be asked: {error}")))?;
    let folder = inner.run.environment(id);
    let looked_for = [
        ("process", !marked(inner, id)?.is_empty()),
        (
            "socket",
            folder.api_socket().exists() || folder.egress_socket().exists(),
        ),
        ("group", inner.groups.exists(id)),
        ("key", traces.keys != 0),
        ("user", traces.user),
        ("role", traces.role),
        ("file", folder.exists()),
    ];
    let left: Vec<_> = looked_for
        .iter()
        .filter(|(_, is_there)| *is_there)
        .map(|(what, _)| *what)
        .collect();
    if left.is_empty() {
        Ok(looked_for.map(|(what, _)| what.to_owned()).to_vec())
    } else {
        Err(transient(format!(
            "still there after its end: {}",
            left.join(", ")
        )))
    }
}
