//! What one environment has in etcd: a user and a role of its own, named by its id, and the keys below its
//! prefix, which is all that the role opens.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::time::Duration;

use kubler_core::ids::EnvironmentId;

use super::Etcd;
use super::client::{Client, EtcdError};
use super::wire::{self, Call, prefix_end};
use crate::crash::{self, Point};

/// Where all environments are.
const PREFIX: &str = "/environments/";
/// How often a request is repeated that came while users changed.
const TRIES_MAX: u32 = 20;
/// Wait between two tries, in milliseconds.
const RETRY_MILLISECONDS: u64 = 2;

const USER_EXISTS: &str = "user name already exists";
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

/// Asks; again as long as the request was refused only because a user came or went meanwhile.
pub(super) async fn call<C: Call>(client: &Client, request: C) -> Result<C::Answer, EtcdError> {
    let mut tries = 1;
    loop {
        match client.call(&request).await {
            Err(error) if tries < TRIES_MAX && error.says(USERS_CHANGED) => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(RETRY_MILLISECONDS)).await;
            }
            answer => return answer,
        }
    }
}

/// The same for a request that may find its work done already, which `harmless` says.
async fn ensure<C: Call>(client: &Client, request: C, harmless: &str) -> Result<(), EtcdError> {
    match call(client, request).await {
        Err(error) if !error.says(harmless) => Err(error),
        _ => Ok(()),
    }
}

/// Asks whether it answers at all.
pub(super) async fn ask(client: &Client) -> Result<(), EtcdError> {
    call(
        client,
        wire::Range {
            key: b"kubler".to_vec(),
            ..wire::Range::default()
        },
    )
    .await
    .map(drop)
}

/// Makes a user whose certificate is its only proof, unless it is there.
pub(super) async fn add_user(client: &Client, name: &str) -> Result<(), EtcdError> {
    let options = Some(wire::UserAddOptions { no_password: true });
    ensure(
        client,
        wire::UserAdd {
            name: name.to_owned(),
            options,
        },
        USER_EXISTS,
    )
    .await
}

impl Etcd {
    /// The prefix of an environment's keys, without the slash that ends it.
    pub(in super::super) fn prefix(id: EnvironmentId) -> String {
        format!("{PREFIX}{id}")
    }

    /// Makes the environment's user and role. Succeeds when they are there.
    pub(in super::super) async fn admit(&self, id: EnvironmentId) -> Result<(), EtcdError> {
        let name = id.to_string();
        let range = range(id);
        let role = async {
            ensure(
                &self.client,
                wire::RoleAdd { name: name.clone() },
                ROLE_EXISTS,
            )
            .await?;
            crash::at(Point::RoleMade);
            let permission = wire::Permission {
                kind: wire::READ_WRITE,
                key: range.clone().into_bytes(),
                range_end: prefix_end(&range),
            };
            call(
                &self.client,
                wire::RoleGrantPermission {
                    name: name.clone(),
                    permission: Some(permission),
                },
            )
            .await
        };
        let user = async {
            add_user(&self.client, &name).await?;
            crash::at(Point::UserMade);
            Ok::<_, EtcdError>(())
        };
        let (role, user) = tokio::join!(role, user);
        role?;
        user?;
        let grant = wire::UserGrantRole {
            user: name.clone(),
            role: name.clone(),
        };
        call(&self.client, grant).await?;
        crash::at(Point::UserAdmitted);
        Ok(())
    }

    /// Takes away the environment's user and role, then its keys: once the user is gone nothing can write any
    /// more, not even a request that was already on its way. Succeeds when there is nothing.
    pub(in super::super) async fn expel(&self, id: EnvironmentId) -> Result<(), EtcdError> {
        let name = id.to_string();
        ensure(
            &self.client,
            wire::UserDelete { name: name.clone() },
            USER_UNKNOWN,
        )
        .await?;
        crash::at(Point::UserDeleted);
        ensure(&self.client, wire::RoleDelete { role: name }, ROLE_UNKNOWN).await?;
        crash::at(Point::RoleDeleted);
        let range = range(id);
        let delete = wire::DeleteRange {
            range_end: prefix_end(&range),
            key: range.into_bytes(),
        };
        call(&self.client, delete).await?;
        crash::at(Point::KeysDeleted);
        Ok(())
    }

    /// Looks for everything of the environment.
    pub(in super::super) async fn traces(&self, id: EnvironmentId) -> Result<Traces, EtcdError> {
        let name = id.to_string();
        let range = range(id);
        let count = wire::Range {
            range_end: prefix_end(&range),
            key: range.into_bytes(),
            count_only: true,
            ..Default::default()
        };
        let (keys, users, roles) = tokio::join!(
            call(&self.client, count),
            call(&self.client, wire::UserList {}),
            call(&self.client, wire::RoleList {})
        );
        Ok(Traces {
            keys: keys?.count,
            user: users?.names.contains(&name),
            role: roles?.names.contains(&name),
        })
    }

    /// Every environment of which there is a user, a role or a key, and those of them that have a user.
    pub(in super::super) async fn environments(
        &self,
    ) -> Result<(BTreeSet<EnvironmentId>, BTreeSet<EnvironmentId>), EtcdError> {
        let ids = |names: &wire::Names| -> BTreeSet<_> {
            names
                .names
                .iter()
                .filter_map(|name| EnvironmentId::from_str(name).ok())
                .collect()
        };
        let (users, roles) = tokio::join!(
            call(&self.client, wire::UserList {}),
            call(&self.client, wire::RoleList {})
        );
        let users = ids(&users?);
        let mut all = ids(&roles?);
        all.extend(&users);
        // From one environment's first key to the next environment's, without reading those in between.
        let mut from = PREFIX.to_owned();
        while let Some(key) = self.first_key(&from).await? {
            let name = key
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('/').next())
                .unwrap_or_default();
            all.extend(EnvironmentId::from_str(name));
            // The character after the slash ends the range of this one.
            from = format!("{PREFIX}{name}0");
        }
        Ok((all, users))
    }

    async fn first_key(&self, from: &str) -> Result<Option<String>, EtcdError> {
        let request = wire::Range {
            key: from.as_bytes().to_vec(),
            range_end: prefix_end(PREFIX),
            limit: 1,
            keys_only: true,
            ..Default::default()
        };
        let answer = call(&self.client, request).await?;
        Ok(answer
            .kvs
            .first()
            .map(|found| String::from_utf8_lossy(&found.key).into_owned()))
    }
}

/// The prefix with its slash: without it `/environments/a` would open `/environments/ab` too.
pub(super) fn range(id: EnvironmentId) -> String {
    format!("{}/", Etcd::prefix(id))
}
