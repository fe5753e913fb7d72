//! What the system itself holds a control plane to.

use super::super::limits::OPEN_FILES_MAX;
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
