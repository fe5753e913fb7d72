//! What one environment has in etcd: a user and a role of its own, named by its id, and the keys below its
//! prefix, which is all that the role opens.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::time::Duration;

use etcd_client::{DeleteOptions, Error, GetOptions, Permission, UserAddOptions};
use kubler_core::ids::EnvironmentId;

use super::Etcd;

/// Where all environments are.
const PREFIX: &str = "/environments/";
/// How often a request is repeated that came while users changed.
const TRIES_MAX: u32 = 20;
/// Wait between two tries, in milliseconds.
const RETRY_MILLISECONDS: u64 = 2;

pub(super) const USER_EXISTS: &str = "user name already exists";
const USER_UNKNOWN: &str = "user name not found";
const ROLE_EXISTS: &str = "role name already exists";
const ROLE_UNKNOWN: &str = "role name not found";
/// The answer to a request that was on its way while a user or role changed: it was not done.
const USERS_CHANGED: &str = "revision of auth store is old";

/// What is left of an environment in etcd.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Traces {
    pub(in super::super) keys: i64,
    pub(in super::super) user: bool,
    pub(in super::super) role: bool,
}

/// Takes the error that says that nothing had to be done for success.
pub(super) fn unless<T>(result: Result<T, Error>, harmless: &str) -> Result<(), Error> {
    match result {
        Err(error) if !says(&error, harmless) => Err(error),
        _ => Ok(()),
    }
}

fn says(error: &Error, text: &str) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains(text))
}

/// Repeats a request that was refused only because another environment's user came or went meanwhile.
async fn settled<T, F: Future<Output = Result<T, Error>>>(mut request: impl FnMut() -> F) -> Result<T, Error> {
    let mut tries = 1;
    loop {
        match request().await {
            Err(error) if tries < TRIES_MAX && says(&error, USERS_CHANGED) => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(RETRY_MILLISECONDS)).await;
            }
            answer => return answer,
        }
    }
}

impl Etcd {
    /// The prefix of an environment's keys, without the slash that ends it.
    pub(in super::super) fn prefix(id: EnvironmentId) -> String {
        format!("{PREFIX}{id}")
    }

    /// Makes the environment's user and role. Succeeds when they are there.
    pub(in super::super) async fn admit(&self, id: EnvironmentId) -> Result<(), Error> {
        let name = id.to_string();
        // With the slash: `/environments/a` would open `/environments/ab` too.
        let range = format!("{}/", Self::prefix(id));
        let role = async {
            unless(settled(|| self.role_add(&name)).await, ROLE_EXISTS)?;
            settled(|| self.role_open(&name, &range)).await
        };
        let user = async { unless(settled(|| self.user_add(&name)).await, USER_EXISTS) };
        let (role, user) = tokio::join!(role, user);
        role.and(user)?;
        settled(|| self.user_join(&name)).await
    }

    /// Takes away the environment's user and role, then its keys: once the user is gone nothing can write any
    /// more, not even a request that was already on its way. Succeeds when there is nothing.
    pub(in super::super) async fn expel(&self, id: EnvironmentId) -> Result<(), Error> {
        let name = id.to_string();
        unless(settled(|| self.user_delete(&name)).await, USER_UNKNOWN)?;
        unless(settled(|| self.role_delete(&name)).await, ROLE_UNKNOWN)?;
        let range = format!("{}/", Self::prefix(id));
        settled(|| self.keys_delete(&range)).await
    }

    /// Looks for everything of the environment.
    pub(in super::super) async fn traces(&self, id: EnvironmentId) -> Result<Traces, Error> {
        let name = id.to_string();
        let range = format!("{}/", Self::prefix(id));
        let (keys, users, roles) =
            tokio::join!(settled(|| self.count(&range)), settled(|| self.users()), settled(|| self.roles()));
        Ok(Traces { keys: keys?, user: users?.contains(&name), role: roles?.contains(&name) })
    }

    /// Every environment of which there is a user, a role or a key, and those of them that have a user.
    pub(in super::super) async fn environments(&self) -> Result<(BTreeSet<EnvironmentId>, BTreeSet<EnvironmentId>), Error> {
        let ids = |names: Vec<String>| names.iter().filter_map(|name| EnvironmentId::from_str(name).ok()).collect::<BTreeSet<_>>();
        let (users, roles) = tokio::join!(settled(|| self.users()), settled(|| self.roles()));
        let users = ids(users?);
        let mut all = ids(roles?);
        all.extend(&users);
        // From one environment's first key to the next environment's, without reading those in between.
        let mut from = PREFIX.to_owned();
        while let Some(key) = settled(|| self.first_key(&from)).await? {
            let name = key.strip_prefix(PREFIX).and_then(|rest| rest.split('/').next()).unwrap_or_default();
            all.extend(EnvironmentId::from_str(name));
            // The character after the slash ends the range of this one.
            from = format!("{PREFIX}{name}0");
        }
        Ok((all, users))
    }

    async fn role_add(&self, name: &str) -> Result<(), Error> {
        self.client.auth_client().role_add(name).await.map(drop)
    }

    async fn role_open(&self, name: &str, range: &str) -> Result<(), Error> {
        let permission = Permission::read_write(range).with_prefix();
        self.client.auth_client().role_grant_permission(name, permission).await.map(drop)
    }

    async fn user_add(&self, name: &str) -> Result<(), Error> {
        self.client.auth_client().user_add(name, "", Some(UserAddOptions::new().with_no_pwd())).await.map(drop)
    }

    async fn user_join(&self, name: &str) -> Result<(), Error> {
        self.client.auth_client().user_grant_role(name, name).await.map(drop)
    }

    async fn user_delete(&self, name: &str) -> Result<(), Error> {
        self.client.auth_client().user_delete(name).await.map(drop)
    }

    async fn role_delete(&self, name: &str) -> Result<(), Error> {
        self.client.auth_client().role_delete(name).await.map(drop)
    }

    async fn keys_delete(&self, range: &str) -> Result<(), Error> {
        self.client.kv_client().delete(range, Some(DeleteOptions::new().with_prefix())).await.map(drop)
    }

    async fn users(&self) -> Result<Vec<String>, Error> {
        Ok(self.client.auth_client().user_list().await?.users().to_vec())
    }

    async fn roles(&self) -> Result<Vec<String>, Error> {
        Ok(self.client.auth_client().role_list().await?.roles().to_vec())
    }

    async fn count(&self, range: &str) -> Result<i64, Error> {
        let options = GetOptions::new().with_prefix().with_count_only();
        Ok(self.client.kv_client().get(range, Some(options)).await?.count())
    }

    async fn first_key(&self, from: &str) -> Result<Option<String>, Error> {
        // `0` follows `/`: the end of everything below the common prefix.
        let end = format!("{}0", PREFIX.trim_end_matches('/'));
        let options = GetOptions::new().with_range(end).with_keys_only().with_limit(1);
        let answer = self.client.kv_client().get(from, Some(options)).await?;
        Ok(answer.kvs().first().map(|found| String::from_utf8_lossy(found.key()).into_owned()))
    }
}
