//! What the system itself holds a control plane to.

use serde_json::json;

use super::super::limits::OPEN_FILES_MAX;
use super::super::pace;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_runs_under_limits_that_it_cannot_raise() {
    let place = Place::new();
    let engine = place.engine().await;
    let environment = environment(1);
    engine.provision(&environment).await.unwrap();
    let pid = engine.inner.mark(environment.id).processes()[0]
        .record()
        .pid;
    assert_eq!(limit(pid, "Max open files"), [OPEN_FILES_MAX; 2]);
    assert_eq!(limit(pid, "Max core file size"), [0; 2]);
    // Its log and nothing else is a file that grows; it bounds that itself.
    assert_eq!(limit(pid, "Max file size"), [2 << 20; 2]);
    engine.remove(environment.id).await.unwrap();
}

/// The soft and the hard limit of a process.
fn limit(pid: i32, name: &str) -> [u64; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    let mut numbers = line
        .split_whitespace()
        .map(|word| word.parse().unwrap_or(u64::MAX));
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_has_control_groups_of_its_own_where_there_are_any() {
    let place = Place::new();
    let engine = place.engine().await;
    let groups = Arc::clone(&engine.inner.groups);
    if groups.in_force().is_empty() {
        println!("skipped: no control groups can be had here");
        return;
    }
    let (first, second) = (environment(1), environment(2));
    engine.provision(&first).await.unwrap();
    engine.provision(&second).await.unwrap();
    for environment in [&first, &second] {
        let pid = engine.inner.mark(environment.id).processes()[0]
            .record()
            .pid;
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        for controller in groups.in_force() {
            let named = |line: &&str| line.contains(controller) || line.starts_with("0::");
            let ours = |line: &str| line.ends_with(&format!("/{}", environment.id));
            assert!(own.lines().filter(named).any(ours), "{controller}: {own}");
        }
    }
    assert_eq!(engine.bounds_in_force(), bounds_to_be_had());
    // What is left of an environment is all taken away, and is found as long as it is there.
    let process = engine.inner.mark(first.id).processes().remove(0);
    process.kill().await.unwrap();
    assert!(ids(&engine).await.contains(&first.id) && groups.exists(first.id));
    engine.remove(first.id).await.unwrap();
    assert!(!groups.exists(first.id) && groups.exists(second.id));
    engine.stop(StopMode::EndEverything).await.unwrap();
    assert!(groups.environments().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_too_much_memory_at_once_is_ended_by_the_system_and_told() {
    let place = Place::new();
    // Nobody looks at sizes: the system is all there is.
    let engine = place
        .engine_with(|settings| settings.sample_every = Duration::from_secs(3600))
        .await;
    if !engine.inner.groups.in_force().contains(&"memory") {
        println!("skipped: no control group of memory can be had here");
        return;
    }
    let (greedy, neighbour) = (environment(1), environment(2));
    engine.provision(&greedy).await.unwrap();
    engine.provision(&neighbour).await.unwrap();
    let api = job_client(&engine, greedy.id).await;
    // As if its profile allowed what it has now and a little more.
    engine.inner.groups.hold_to_what_it_has(greedy.id, 16 << 20);
    let value = "x".repeat(900_000);
    for number in 0..200 {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{number}")}, "data": {"value": value},
        });
        let made = api
            .post("/api/v1/namespaces/default/configmaps", &map)
            .await;
        if made.is_err() {
            break;
        }
    }
    let message = sizes::fault_of(&engine, greedy.id).await;
    assert!(
        message.contains("more memory at once than its profile allows"),
        "{message}"
    );
    engine.remove(greedy.id).await.unwrap();
    assert_eq!(
        place.leftovers(&engine, greedy.id).await,
        Vec::<String>::new()
    );
    let api = job_client(&engine, neighbour.id).await;
    assert!(api.get("/readyz").await.unwrap().is_success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_behind_the_others_does_so_with_every_thread() {
    let place = Place::new();
    let engine = place
        .engine_with(|settings| settings.control_groups = false)
        .await;
    assert_eq!(
        engine.bounds_in_force(),
        ["open files", "memory dumps", "niceness"]
    );
    let environment = environment(1);
    engine.provision(&environment).await.unwrap();
    let process = engine.inner.mark(environment.id).processes().remove(0);
    pace::set_niceness(&process, pace::NICE).unwrap();
    let threads = fs::read_dir(format!("/proc/{}/task", process.record().pid)).unwrap();
    let nice = threads.map(|thread| {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        let nice = fields.split_whitespace().nth(16).unwrap();
        nice.parse::<i32>().unwrap()
    });
    let nice: Vec<_> = nice.collect();
    assert!(
        nice.len() > 3 && nice.iter().all(|nice| *nice == pace::NICE),
        "{nice:?}"
    );
    assert!(process.cpu_ticks().unwrap() > 0);
    engine.remove(environment.id).await.unwrap();
}
