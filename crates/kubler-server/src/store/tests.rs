mod full_disk;
mod images;

use std::collections::BTreeMap;

use kubler_core::configuration::Configuration;
use kubler_core::environment::{EndReason, Environment, Event, Phase, Scope};
use kubler_core::identity::{Identity, Job, Named, Owner, Run, Runner, Source, VerifiedToken};
use kubler_core::ids::{SessionId, TokenDigest};
use kubler_core::policy::{Action, Caller, Permit, Target, starter};
use kubler_core::profile::ResolvedProfile;
use kubler_core::text::UntrustedText;
use serde_json::json;

use super::*;
use crate::policy::{Policies, read_set};

const ORGANIZATION: &str = "01945ecf-0000-4000-8000-000000000001";
const HOUR: i64 = 3600;

/// `seconds` after the tests' beginning of time.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// The nth job of one build.
pub(crate) fn job(nth: u16) -> Identity {
    Identity {
        issuer: "https://agent.buildkite.com".into(),
        organization: Named {
            id: ORGANIZATION.into(),
            slug: "acme".into(),
        },
        project: Named {
            id: "01945ecf-0000-4000-8000-000000000002".into(),
            slug: "web".into(),
        },
        run: Run {
            id: "01945ecf-0000-4000-8000-000000000003".into(),
            number: 5,
            url: "https://buildkite.com/acme/web/builds/5".into(),
        },
        job: Job {
            id: format!("01945ecf-0000-4000-8000-00000001{nth:04}"),
            step_key: None,
            url: format!("https://buildkite.com/acme/web/builds/5#job-{nth}"),
        },
        source: Source {
            branch: None,
            tag: None,
            commit: UntrustedText::new("b5ffe3aeea51cec6c41aef16e45ee6bce47d8810"),
            trigger: "ui".into(),
        },
        runner: Runner::default(),
    }
}

fn configuration() -> Configuration {
    serde_json::from_value(json!({
        "url": "https://kubler.test:8443",
        "issuers": [{ "kind": "buildkite", "audience": "kubler", "organizations": [{ "id": ORGANIZATION, "slug": "acme" }] }],
        "kubernetes": { "1.34": {} },
        "profiles": [
            { "name": "ci-small", "kubernetes": "1.34" },
            { "name": "rare", "kubernetes": "1.34", "environments_max": 2 },
        ],
    }))
    .unwrap()
}

fn of_profile(name: &str, nth: u16, identity: &Identity, called: &str) -> Environment {
    let resolved = ResolvedProfile {
        profile: configuration().profile(name).unwrap().clone(),
        kubernetes_version: "v1.34.4".into(),
        manifests: BTreeMap::new(),
    };
    let mut random = [0; 16];
    random[..2].copy_from_slice(&nth.to_be_bytes());
    Environment {
        id: EnvironmentId::from_random(random),
        name: called.into(),
        scope: Scope::Job,
        identity: identity.clone(),
        digest: resolved.digest(),
        resolved,
        placement: None,
        phase: Phase::Requested,
        reason: None,
        created_at: at(0),
        ready_at: None,
        lease_end: at(300),
        deadline: at(7200),
        dead_at: None,
        gone_at: None,
        version: 0,
    }
}

/// Created at 0 with a lease of 300 s and a deadline of 7200 s, in phase Requested.
pub(crate) fn environment(nth: u16, identity: &Identity, name: &str) -> Environment {
    of_profile("ci-small", nth, identity, name)
}

/// An environment of the first job, and the same open to its build.
pub(crate) fn of_job_and_build() -> [Environment; 2] {
    let of_job = environment(1, &job(1), "main");
    let of_build = Environment {
        scope: Scope::Build,
        ..of_job.clone()
    };
    [of_job, of_build]
}

/// The first job, another of its build, and one of another build.
pub(crate) fn maker_neighbour_stranger() -> [Owner; 3] {
    let mut stranger = job(2);
    stranger.run.id = "01945ecf-0000-4000-8000-0000000000ff".into();
    [job(1).owner(), job(2).owner(), stranger.owner()]
}

/// A store in a folder of its own.
struct Shelf {
    folder: tempfile::TempDir,
    policies: Policies,
    store: Store,
}

impl Shelf {
    async fn with(limits: Limits) -> Self {
        Self::at(tempfile::tempdir().unwrap(), limits).await
    }

    async fn at(folder: tempfile::TempDir, limits: Limits) -> Self {
        for (name, text) in starter(ORGANIZATION, "acme") {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let policies = Policies::new(read_set(folder.path(), &configuration()).unwrap());
        let store = open(folder.path(), limits).await;
        Self {
            folder,
            policies,
            store,
        }
    }

    async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    /// The same file, as the next start finds it.
    async fn reopened(self) -> Self {
        let Self {
            folder,
            policies,
            store,
        } = self;
        store.pool.close().await;
        drop(store);
        let store = open(folder.path(), Limits::default()).await;
        Self {
            folder,
            policies,
            store,
        }
    }

    fn permit(&self, action: Action, environment: &Environment) -> Permit {
        let caller = Caller::Job(Box::new(environment.identity.clone()));
        let target = match action {
            Action::CreateEnvironment => Target::Profile(Box::new(environment.resolved.clone())),
            _ => Target::Environment(Box::new(environment.clone())),
        };
        self.policies
            .current()
            .decide(&caller, action, target)
            .unwrap()
    }

    async fn create(&self, environment: &Environment) -> Result<Created, StoreError> {
        let permit = self.permit(Action::CreateEnvironment, environment);
        self.store
            .create_environment(permit, environment.clone())
            .await
    }

    async fn ready(&self, environment: &Environment) {
        self.create(environment).await.unwrap();
        for event in [Event::ProvisioningStarted, Event::BecameReady] {
            self.store
                .apply(environment.id, event, at(1))
                .await
                .unwrap();
        }
    }

    async fn gone(&self, environment: &Environment, now: Timestamp) {
        let release = Event::ReleaseRequested(EndReason::Released);
        for event in [release, Event::FoundGone] {
            self.store.apply(environment.id, event, now).await.unwrap();
        }
    }

    async fn exchange(
        &self,
        environment: &Environment,
        token: &VerifiedToken,
        session: u8,
        now: Timestamp,
    ) -> Exchanged {
        let permit = self.permit(Action::IssueSession, environment);
        let session = SessionId::from_random([session; 16]);
        self.store
            .exchange(permit, token, session, now)
            .await
            .unwrap()
    }

    async fn stored(&self, id: EnvironmentId) -> Environment {
        self.store.get(id).await.unwrap().unwrap()
    }
}

async fn open(folder: &Path, limits: Limits) -> Store {
    let directory = Arc::new(Directory::new(at(0)));
    Store::open(&folder.join("store.sqlite"), directory, limits)
        .await
        .unwrap()
}

fn token(identity: &Identity, text: &str, issued_at: Timestamp) -> VerifiedToken {
    VerifiedToken {
        identity: identity.clone(),
        digest: TokenDigest::of(text),
        token_id: None,
        issued_at,
        expires_at: kubler_core::lease::after(issued_at, Duration::from_secs(300)),
    }
}

fn message(result: Result<Created, StoreError>) -> (String, Own) {
    match result {
        Err(StoreError::Full { message, own }) => (message, own),
        other => panic!("not full: {other:?}"),
    }
}

#[tokio::test]
async fn the_same_job_and_name_give_the_first_environment_also_after_a_restart() {
    let shelf = Shelf::new().await;
    let first = environment(1, &job(1), "main");
    assert_eq!(
        shelf.create(&first).await.unwrap(),
        Created::New(first.clone())
    );
    let again = environment(2, &job(1), "main");
    let found = Created::Existing(first.clone());
    assert_eq!(shelf.create(&again).await.unwrap(), found);
    let shelf = shelf.reopened().await;
    assert_eq!(shelf.create(&again).await.unwrap(), found);
    for other in [
        environment(3, &job(1), "second"),
        environment(4, &job(2), "main"),
    ] {
        assert_eq!(shelf.create(&other).await.unwrap(), Created::New(other));
    }
}

#[tokio::test]
async fn concurrent_creates_of_one_key_make_one() {
    let shelf = Shelf::new().await;
    let wanted: Vec<_> = (1..=20)
        .map(|nth| environment(nth, &job(1), "main"))
        .collect();
    let creates = wanted.iter().map(|environment| shelf.create(environment));
    let made = futures_util::future::join_all(creates).await;
    let (mut new, mut ids) = (0, std::collections::BTreeSet::new());
    for created in made {
        let environment = match created.unwrap() {
            Created::New(environment) => {
                new += 1;
                environment
            }
            Created::Existing(environment) => environment,
        };
        ids.insert(environment.id);
    }
    assert_eq!((new, ids.len()), (1, 1));
    let stored = shelf.store.search(&Search::default(), None).await.unwrap();
    assert_eq!(stored.len(), 1);
}

#[tokio::test]
async fn limits_are_held_and_say_whose_they_are() {
    let limits = Limits {
        environments_max: 5,
        queue_max: 3,
        environments_per_job_max: 2,
        ..Limits::default()
    };
    let shelf = Shelf::with(limits).await;
    for nth in 1..=2 {
        let name = format!("n{nth}");
        shelf.ready(&environment(nth, &job(1), &name)).await;
    }
    let third = environment(3, &job(1), "n3");
    let (said, own) = message(shelf.create(&third).await);
    assert_eq!(
        (said.as_str(), own),
        (
            "this job already has 2 environments, its limit",
            Own::Caller
        )
    );
    assert_eq!(shelf.store.get(third.id).await.unwrap(), None);

    for nth in 11..=12 {
        let rare = of_profile("rare", nth, &job(nth), "main");
        shelf.create(&rare).await.unwrap();
    }
    let (said, own) = message(
        shelf
            .create(&of_profile("rare", 13, &job(13), "main"))
            .await,
    );
    assert!(said.contains("2 environments of profile `rare`"), "{said}");
    assert_eq!(own, Own::Server);

    shelf
        .create(&environment(21, &job(21), "main"))
        .await
        .unwrap();
    let more = environment(22, &job(22), "main");
    let (said, _) = message(shelf.create(&more).await);
    assert!(said.contains("5 environments exist"), "{said}");

    // What is gone makes room; then three still wait to be made.
    let first = shelf.stored(environment(1, &job(1), "n1").id).await;
    shelf.gone(&first, at(9)).await;
    let (said, own) = message(shelf.create(&more).await);
    assert_eq!(
        (said.as_str(), own),
        (
            "3 environments wait to be made, the queue's limit",
            Own::Server
        )
    );
    let waiting = environment(21, &job(21), "main");
    shelf
        .store
        .apply(waiting.id, Event::ProvisioningStarted, at(9))
        .await
        .unwrap();
    assert_eq!(shelf.create(&more).await.unwrap(), Created::New(more));
}

#[tokio::test]
async fn what_has_ended_is_renewed_by_nobody() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.ready(&environment).await;
    let renew = async |seconds: i64| {
        // Let in while it lived: it may end before the store is asked.
        let permit = shelf.permit(Action::RenewEnvironment, &environment);
        let (minted, now) = (at(seconds), at(seconds + 1));
        let renewed = shelf.store.renew_environment(permit, minted, now).await;
        renewed.unwrap().lease_end
    };
    assert_eq!(renew(10).await, at(310));
    let release = Event::ReleaseRequested(EndReason::Released);
    for event in [release, Event::FoundGone] {
        shelf
            .store
            .apply(environment.id, event, at(20))
            .await
            .unwrap();
        let version = shelf.stored(environment.id).await.version;
        assert_eq!(renew(30).await, at(310));
        assert_eq!(shelf.stored(environment.id).await.version, version);
    }
}

#[tokio::test]
async fn an_exchange_stores_the_lease_that_its_token_proves() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.ready(&environment).await;
    let minted = token(&job(1), "t", at(250));
    let exchanged = shelf.exchange(&environment, &minted, 1, at(260)).await;
    let Exchanged::Session(exchange) = exchanged else {
        panic!("{exchanged:?}")
    };
    assert_eq!(
        exchange.session_end,
        at(550),
        "one lease after the token was minted"
    );
    assert_eq!(shelf.stored(environment.id).await.lease_end, at(550));
    let known = shelf.store.directory.get(environment.id).unwrap();
    assert_eq!(known.lease_end, at(550));

    let shelf = shelf.reopened().await;
    let stored = shelf.stored(environment.id).await;
    assert!(
        exchange.session_end <= stored.lease_end && stored.version == 3,
        "{stored:?}"
    );
    // The same token again is the same session, and an older one takes nothing away.
    let repeated = shelf.exchange(&stored, &minted, 2, at(265)).await;
    assert_eq!(repeated, Exchanged::Session(exchange));
    let older = token(&job(1), "older", at(200));
    shelf.exchange(&stored, &older, 3, at(270)).await;
    assert_eq!(shelf.stored(environment.id).await, stored);
}

#[tokio::test]
async fn an_exchange_for_what_has_ended_or_with_an_old_token_changes_nothing() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.ready(&environment).await;
    let ready = shelf.stored(environment.id).await;
    let old = token(&job(1), "old", at(-400));
    let refused = shelf.exchange(&ready, &old, 1, at(299)).await;
    assert!(matches!(refused, Exchanged::TokenTooOld), "{refused:?}");
    assert_eq!(shelf.stored(environment.id).await, ready);
    shelf.gone(&ready, at(100)).await;
    let gone = shelf.stored(environment.id).await;
    let fresh = token(&job(1), "fresh", at(100));
    let refused = shelf.exchange(&ready, &fresh, 2, at(101)).await;
    let Exchanged::Ended(tombstone) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((tombstone.id, tombstone.is_gone), (gone.id, true));
    assert_eq!(shelf.stored(environment.id).await, gone);
}

#[tokio::test]
async fn a_tombstone_is_kept_for_a_week_and_then_forgotten() {
    let shelf = Shelf::new().await;
    let (dead, lives) = (
        environment(1, &job(1), "main"),
        environment(2, &job(2), "main"),
    );
    shelf.create(&dead).await.unwrap();
    shelf.create(&lives).await.unwrap();
    shelf.gone(&dead, at(10)).await;
    let week = 7 * 24 * HOUR;
    shelf.store.forget(at(10 + week)).await.unwrap();
    assert!(shelf.store.get(dead.id).await.unwrap().is_some());
    assert!(shelf.store.directory.get(dead.id).is_some());
    shelf.store.forget(at(11 + week)).await.unwrap();
    assert_eq!(shelf.store.get(dead.id).await.unwrap(), None);
    assert_eq!(shelf.store.directory.get(dead.id), None);
    assert!(shelf.store.get(lives.id).await.unwrap().is_some());
}

#[tokio::test]
async fn an_exchange_is_remembered_as_long_as_its_token_could_be_used() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.ready(&environment).await;
    let minted = token(&job(1), "t", at(10));
    let first = shelf.exchange(&environment, &minted, 1, at(20)).await;
    shelf.store.forget(at(310 + HOUR)).await.unwrap();
    let again = shelf.exchange(&environment, &minted, 2, at(25)).await;
    assert_eq!(again, first, "a token was exchanged twice");
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repeat() {
    let limits = Limits {
        environments_max: 1000,
        queue_max: 1000,
        ..Limits::default()
    };
    let shelf = Shelf::with(limits).await;
    let count = u16::try_from(2 * SEARCH_PAGE + 7).unwrap();
    for nth in 1..=count {
        let mut environment = environment(nth, &job(nth), "main");
        // Three of each moment, so that a page ends between two of them.
        environment.created_at = at(i64::from(nth / 3));
        shelf.create(&environment).await.unwrap();
    }
    let search = Search {
        pipeline: Some("web".into()),
        commit: Some("b5ffe3a".into()),
        ..Search::default()
    };
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = shelf.store.search(&search, after).await.unwrap();
        after = page.last().map(Place::after);
        seen.extend(
            page.iter()
                .map(|environment| (environment.created_at, environment.id)),
        );
        if page.len() < SEARCH_PAGE {
            break;
        }
    }
    assert_eq!(seen.len(), usize::from(count));
    let unique: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len());
    assert!(
        seen.windows(2).all(|two| two[0].0 >= two[1].0),
        "not newest first"
    );
    for (organization, all) in [("acme", true), ("globex", false)] {
        let mut named = search.clone();
        named.name_pipeline(&format!("{organization}/web"));
        let found = shelf.store.search(&named, None).await.unwrap();
        assert_eq!(found.len() == SEARCH_PAGE, all, "{organization}");
        assert_eq!(found.is_empty(), !all, "{organization}");
    }
    for other in [
        Search {
            project_id: Some("other".into()),
            ..search.clone()
        },
        Search {
            build_number: Some(6),
            ..search.clone()
        },
        Search {
            phase: Some(Phase::Gone),
            ..search
        },
    ] {
        assert_eq!(
            shelf.store.search(&other, None).await.unwrap(),
            [],
            "{other:?}"
        );
    }
}

#[tokio::test]
async fn a_store_that_can_be_read_and_not_written_fails_its_check() {
    let shelf = Shelf::new().await;
    shelf.store.check(at(0)).await.unwrap();
    let other = SqlitePool::connect_with(
        SqliteConnectOptions::new().filename(shelf.folder.path().join("store.sqlite")),
    )
    .await
    .unwrap();
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    shelf
        .store
        .check(at(0))
        .await
        .expect("the last answer holds for a second");
    assert_eq!(
        shelf.store.search(&Search::default(), None).await.unwrap(),
        []
    );
    assert!(shelf.store.check(at(2)).await.is_err());
    lock.rollback().await.unwrap();
    shelf.store.check(at(2)).await.unwrap();
}

#[tokio::test]
async fn slow_searches_hold_no_end_up() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.create(&environment).await.unwrap();
    let mut busy = Vec::new();
    for _ in 0..READERS_MAX {
        busy.push(shelf.store.pool.acquire().await.unwrap());
    }
    let event = Event::ReleaseRequested(EndReason::Released);
    let guest = job(2);
    let permit = shelf.permit(Action::CreateEnvironment, &environment);
    let attached = shelf.store.attach(permit, &environment, &guest, at(1));
    attached.await.unwrap();
    let ended = shelf.store.apply(environment.id, event, at(1)).await;
    assert_eq!(ended.unwrap().unwrap().1.phase, Phase::Releasing);
    // And by their connections nothing can be written.
    let written = sqlx::query("DELETE FROM environments")
        .execute(&mut *busy[0])
        .await;
    assert!(written.unwrap_err().to_string().contains("readonly"));
}

#[tokio::test]
async fn the_store_remembers_what_it_saw_of_its_ledger() {
    let shelf = Shelf::new().await;
    assert_eq!(shelf.store.witness().await.unwrap(), None);
    let key = kubler_core::ledger::checkpoint::PrivateKey::from_random(
        "kubler.test/ledger",
        &[7; 32].into(),
    )
    .unwrap();
    for size in [1, 2] {
        let note = key.sign(size, [9; 32]);
        shelf.store.saw_ledger(key.public(), &note).await.unwrap();
    }
    let shelf = shelf.reopened().await;
    let seen = shelf.store.witness().await.unwrap().unwrap();
    assert_eq!(key.public().open(&seen.note).unwrap().size, 2);
}
