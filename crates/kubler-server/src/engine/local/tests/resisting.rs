//! Gone is said after looking: as long as something is there, it is not said.

use std::process::{Command, Stdio};

use tokio_util::task::AbortOnDropHandle;

use super::super::etcd::{Client, usage, wire};
use super::super::process::Process;
use super::*;

/// Writes one key.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Put {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

impl wire::Call for Put {
    const PATH: &'static str = "/etcdserverpb.KV/Put";
    type Answer = Written;
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Written {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<wire::Header>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_end_is_an_error_as_long_as_something_of_the_environment_comes_back() {
    let place = Place::new();
    let engine = place.engine().await;
    let id = environment(1).id;
    let root = engine.inner.etcd.root();
    let folder = place.folder.path().join("local/run").join(id.to_string());

    let key = Put {
        key: format!("/environments/{id}/planted").into(),
        value: b"x".to_vec(),
    };
    let (etcd, planted) = (root.clone(), key.clone());
    let planting = again_and_again(move || {
        let (etcd, planted) = (etcd.clone(), planted.clone());
        async move { drop(etcd.call(&planted).await) }
    });
    it_resists(&engine, id, "key", planting).await;

    let (etcd, name) = (root.clone(), id.to_string());
    let planting = again_and_again(move || {
        let (etcd, name) = (etcd.clone(), name.clone());
        let options = Some(wire::UserAddOptions { no_password: true });
        async move { drop(etcd.call(&wire::UserAdd { name, options }).await) }
    });
    it_resists(&engine, id, "user", planting).await;

    let (etcd, name) = (root, id.to_string());
    let planting = again_and_again(move || {
        let (etcd, name) = (etcd.clone(), name.clone());
        async move { drop(etcd.call(&wire::RoleAdd { name }).await) }
    });
    it_resists(&engine, id, "role", planting).await;

    let planted = folder.clone();
    let planting = again_and_again(move || {
        let planted = planted.join("planted");
        async move { drop(fs::create_dir_all(planted)) }
    });
    it_resists(&engine, id, "file", planting).await;

    let planted = folder.clone();
    let planting = again_and_again(move || {
        let planted = planted.clone();
        async move {
            let _ = fs::create_dir_all(&planted);
            let _ = fs::write(planted.join("api.sock"), "");
        }
    });
    it_resists(&engine, id, "socket", planting).await;

    let mark = engine.inner.mark(id);
    let planting = again_and_again(move || {
        let mark = mark.clone();
        async move {
            let mut command = Command::new("/bin/sleep");
            command.arg("300").stdout(Stdio::null());
            let started = Process::start(&mut command, &mark).unwrap();
            started.ended().await;
        }
    });
    it_resists(&engine, id, "process", planting).await;
    assert_eq!(place.processes().len(), 1, "only etcd is left");
}

/// Does it over and over until the handle is dropped.
fn again_and_again<F: Future<Output = ()> + Send>(
    mut once: impl FnMut() -> F + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            once().await;
            tokio::task::yield_now().await;
        }
    }))
}

/// Ending fails and names `what` while it comes back, and succeeds afterwards.
async fn it_resists(
    engine: &LocalEngine,
    id: EnvironmentId,
    what: &str,
    planting: AbortOnDropHandle<()>,
) {
    let error = eventually(&format!("{what} is found after the end"), || async {
        let error = engine.remove(id).await.err()?;
        let named = error.message.strip_prefix("still there after its end: ")?;
        named
            .split(", ")
            .any(|named| named == what)
            .then_some(error)
    })
    .await;
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    planting.abort();
    let _ = planting.await;
    // What was planted last may be found and taken away by this end.
    let evidence = engine.remove(id).await.unwrap();
    assert!(
        evidence.looked_for.iter().any(|looked| looked == what),
        "{evidence:?}"
    );
    assert!(!ids(engine).await.contains(&id), "{what} is still seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_any_size_are_counted_to_the_byte_and_no_further_than_the_bound() {
    let place = Place::new();
    let engine = place.engine().await;
    let root = engine.inner.etcd.root();
    let id = environment(1).id;
    let mut expected = 0;
    // Many small values, then more large ones than fit into one answer, and a neighbour's that do not count.
    let put = async |name: String, bytes: usize| {
        let put = Put {
            key: name.into(),
            value: vec![b'x'; bytes],
        };
        root.call(&put).await.unwrap();
        put.key.len() + put.value.len()
    };
    for number in 0..300 {
        expected += put(format!("/environments/{id}/a{number:03}"), 10).await;
    }
    for number in 0..10 {
        expected += put(format!("/environments/{id}/b{number:03}"), 1_400_000).await;
    }
    put(format!("/environments/{id}0/z"), 1000).await;
    let count =
        async |client: &Client, bound| usage::stored_bytes(client, id, bound).await.unwrap();
    assert_eq!(
        count(&root, u64::MAX).await,
        u64::try_from(expected).unwrap()
    );
    let some = count(&root, 20_000).await;
    assert!((20_001..8_000_000).contains(&some), "{some}");
    engine.remove(id).await.unwrap();
    assert_eq!(count(&root, u64::MAX).await, 0);
}
