use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_control_plane_is_noticed_and_a_killed_etcd_comes_back() {
    let place = Place::new();
    let engine = place.engine().await;
    let environment = environment(1);
    let id = environment.id;
    engine.provision(&environment).await.unwrap();

    kill(&place, ETCD_SUBJECT);
    tokio::time::timeout(Duration::from_secs(WAIT_SECONDS), engine.changed())
        .await
        .expect("etcd's end changes nothing");
    let api = job_client(&engine, id).await;
    let map = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x-"}});
    eventually("the environment goes on", || async {
        let answer = api
            .post("/api/v1/namespaces/default/configmaps", &map)
            .await
            .ok()?;
        answer.is_success().then_some(())
    })
    .await;
    let found = eventually("etcd answers", || async { engine.observe().await.ok() }).await;
    assert_eq!(
        found,
        [Observed {
            id,
            condition: Condition::Whole,
            unremembered: kubler_core::plan::Unremembered::Ends,
        }]
    );

    kill(&place, &id.to_string());
    let broken = eventually("the end is noticed", || async {
        engine.changed().await;
        condition(&engine, id)
            .await
            .filter(|condition| *condition != Condition::Whole)
    })
    .await;
    assert!(matches!(broken, Condition::Broken { .. }), "{broken:?}");
    eventually("the gateway is told", || async {
        engine.upstream(id).is_none().then_some(())
    })
    .await;
    engine.remove(id).await.unwrap();
    assert_eq!(place.leftovers(&engine, id).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_engine_adopts_what_an_earlier_one_left() {
    let place = Place::new();
    let engine = place.engine().await;
    let environment = environment(1);
    let id = environment.id;
    engine.provision(&environment).await.unwrap();
    let error = LocalEngine::start_with(
        engine.inner.settings.clone(),
        Arc::new(SystemClock),
        Arc::clone(&engine.inner.recorder),
    )
    .await;
    assert!(error.err().unwrap().message.contains("another server uses"));
    let socket = engine.inner.run.environment(id).egress_socket();
    for _ in 0..3 {
        let mut out = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let asked = b"CONNECT 192.0.2.9:443 HTTP/1.1\r\n\r\n";
        out.write_all(asked).await.unwrap();
        out.read_to_end(&mut Vec::new()).await.unwrap();
    }
    engine.stop(StopMode::KeepEnvironments).await.unwrap();
    // What was only counted at the way out is written down by the server that counted it.
    let is_counted =
        |body: &&Body| body.details["target"] == "192.0.2.9:443" && body.details["count"] == 2;
    assert_eq!(
        place
            .records
            .lock()
            .unwrap()
            .iter()
            .filter(is_counted)
            .count(),
        1
    );
    let before = place.processes();
    drop(engine);

    let engine = place.engine().await;
    assert_eq!(
        place.processes(),
        before,
        "etcd and the control plane live on"
    );
    assert_eq!(condition(&engine, id).await, Some(Condition::Whole));
    assert!(
        job_client(&engine, id)
            .await
            .get("/readyz")
            .await
            .unwrap()
            .is_success()
    );
    // The way out is served again, and an adopted process is watched like any other.
    let socket = engine.inner.run.environment(id).egress_socket();
    tokio::net::UnixStream::connect(socket).await.unwrap();
    kill(&place, &id.to_string());
    tokio::time::timeout(Duration::from_secs(WAIT_SECONDS), engine.changed())
        .await
        .expect("its end is not noticed");
    assert!(matches!(
        condition(&engine, id).await,
        Some(Condition::Broken { .. })
    ));
    engine.stop(StopMode::EndEverything).await.unwrap();
    assert_eq!(place.processes(), []);
    assert!(
        !place.folder.path().join("local/run").exists()
            && !place.folder.path().join("local/etcd").exists()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn making_that_is_broken_off_at_any_moment_is_found_and_ends_without_a_trace() {
    let place = Place::new();
    let engine = place.engine().await;
    for milliseconds in [0, 1, 2, 4, 8, 15, 30, 120, 600] {
        let environment = environment(1);
        let making = {
            let (engine, environment) = (Arc::clone(&engine), environment.clone());
            tokio::spawn(async move { engine.provision(&environment).await })
        };
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        making.abort();
        engine.remove(environment.id).await.unwrap();
        assert_eq!(
            place.leftovers(&engine, environment.id).await,
            Vec::<String>::new(),
            "after {milliseconds} ms"
        );
    }
    assert!(ids(&engine).await.is_empty());
    assert_eq!(place.processes().len(), 1, "only etcd is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_does_not_wait_for_a_making() {
    let place = Place::new();
    let engine = place.engine().await;
    let environment = environment(1);
    let making = {
        let (engine, environment) = (Arc::clone(&engine), environment.clone());
        tokio::spawn(async move { engine.provision(&environment).await })
    };
    eventually("it is begun", || async {
        place
            .processes()
            .iter()
            .any(|(_, subject)| *subject == environment.id.to_string())
            .then_some(())
    })
    .await;
    let began = std::time::Instant::now();
    engine.remove(environment.id).await.unwrap();
    println!("removed while made in {} ms", began.elapsed().as_millis());
    let error = making.await.unwrap().unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient);
    assert_eq!(
        place.leftovers(&engine, environment.id).await,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_server_left_half_made_is_found_and_made_to_the_end() {
    let place = Place::new();
    let engine = place.engine().await;
    let environment = environment(1);
    let id = environment.id;
    // Everything up to the record: the process runs, and nobody wrote it down.
    let making = {
        let (engine, environment) = (Arc::clone(&engine), environment.clone());
        tokio::spawn(async move { engine.provision(&environment).await })
    };
    eventually("it is begun", || async {
        place
            .processes()
            .iter()
            .any(|(_, subject)| *subject == id.to_string())
            .then_some(())
    })
    .await;
    making.abort();
    let _ = making.await;
    eventually("the work is over", || async {
        engine.inner.slot(id).work.try_lock().ok().map(drop)
    })
    .await;
    fs::remove_file(engine.inner.run.environment(id).path().join("record.json")).unwrap();
    let stray = place.processes();
    drop(engine);

    let engine = place.engine().await;
    assert!(matches!(
        condition(&engine, id).await,
        Some(Condition::Broken { .. })
    ));
    engine.provision(&environment).await.unwrap();
    assert_eq!(condition(&engine, id).await, Some(Condition::Whole));
    assert_ne!(place.processes(), stray, "it begins anew");
    engine.remove(id).await.unwrap();
    assert_eq!(place.leftovers(&engine, id).await, Vec::<String>::new());
}

fn kill(place: &Place, subject: &str) {
    let found = place
        .processes()
        .into_iter()
        .find(|(_, found)| found == subject)
        .expect("a process");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(found.0).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_ended_while_it_made_its_data_begins_anew() {
    let place = Place::new();
    let etcd = place.folder.path().join("local/etcd");
    let made = etcd.join("data/member/snap");
    for folder in [
        &place.folder.path().join("local"),
        &etcd,
        &etcd.join("data"),
        &made,
    ] {
        crate::files::make_private_folder(folder).unwrap();
    }
    fs::write(made.join("db"), "the beginning of a database").unwrap();
    fs::write(etcd.join("unfinished"), "").unwrap();

    let engine = place.engine().await;
    let environment = environment(1);
    engine.provision(&environment).await.unwrap();
    assert!(!etcd.join("unfinished").exists());
    // Data that were served once are never taken away by a start.
    engine.stop(StopMode::KeepEnvironments).await.unwrap();
    drop(engine);
    kill(&place, ETCD_SUBJECT);
    let engine = place.engine().await;
    let api = job_client(&engine, environment.id).await;
    eventually("the environment lives on", || async {
        let answer = api.get("/api/v1/namespaces/default").await.ok()?;
        answer.is_success().then_some(())
    })
    .await;
    engine.remove(environment.id).await.unwrap();
}
