//! Those of etcd's messages that are used here, written by hand: generating them would need `protoc` wherever
//! Kubler is built. Field numbers are etcd's and never change.

use prost::Message;

/// A request and where it goes.
pub(in super::super) trait Call: Message {
    /// `/SERVICE/METHOD`.
    const PATH: &'static str;
    /// What comes back.
    type Answer: Message + Default;
}

macro_rules! calls {
    ($($request:ty => $path:literal => $answer:ty;)*) => {
        $(impl Call for $request {
            const PATH: &'static str = concat!("/etcdserverpb.", $path);
            type Answer = $answer;
        })*
    };
}

calls! {
    Range => "KV/Range" => RangeAnswer;
    DeleteRange => "KV/DeleteRange" => Done;
    UserAdd => "Auth/UserAdd" => Done;
    UserDelete => "Auth/UserDelete" => Done;
    UserGrantRole => "Auth/UserGrantRole" => Done;
    UserList => "Auth/UserList" => Names;
    RoleAdd => "Auth/RoleAdd" => Done;
    RoleDelete => "Auth/RoleDelete" => Done;
    RoleGrantPermission => "Auth/RoleGrantPermission" => Done;
    RoleList => "Auth/RoleList" => Names;
    AuthEnable => "Auth/AuthEnable" => Done;
    Status => "Maintenance/Status" => StatusAnswer;
    Compact => "KV/Compact" => Done;
}

/// An answer of which nothing is read.
#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Done {}

/// Names of users or roles.
#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Names {
    #[prost(string, repeated, tag = "2")]
    pub(in super::super) names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Range {
    #[prost(bytes = "vec", tag = "1")]
    pub(in super::super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(in super::super) range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(in super::super) limit: i64,
    /// The state as of then; 0: now.
    #[prost(int64, tag = "4")]
    pub(in super::super) revision: i64,
    #[prost(bool, tag = "8")]
    pub(in super::super) keys_only: bool,
    #[prost(bool, tag = "9")]
    pub(in super::super) count_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct RangeAnswer {
    #[prost(message, repeated, tag = "2")]
    pub(in super::super) kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub(in super::super) more: bool,
    #[prost(int64, tag = "4")]
    pub(in super::super) count: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(in super::super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub(in super::super) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct DeleteRange {
    #[prost(bytes = "vec", tag = "1")]
    pub(in super::super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(in super::super) range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct UserAdd {
    #[prost(string, tag = "1")]
    pub(in super::super) name: String,
    #[prost(message, optional, tag = "3")]
    pub(in super::super) options: Option<UserAddOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct UserAddOptions {
    #[prost(bool, tag = "1")]
    pub(in super::super) no_password: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct UserDelete {
    #[prost(string, tag = "1")]
    pub(in super::super) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct UserGrantRole {
    #[prost(string, tag = "1")]
    pub(in super::super) user: String,
    #[prost(string, tag = "2")]
    pub(in super::super) role: String,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct UserList {}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct RoleAdd {
    #[prost(string, tag = "1")]
    pub(in super::super) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct RoleDelete {
    #[prost(string, tag = "1")]
    pub(in super::super) role: String,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct RoleGrantPermission {
    #[prost(string, tag = "1")]
    pub(in super::super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(in super::super) permission: Option<Permission>,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Permission {
    /// [`READ_WRITE`].
    #[prost(int32, tag = "1")]
    pub(in super::super) kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub(in super::super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(in super::super) range_end: Vec<u8>,
}

/// The kind of permission that opens a range for everything.
pub(in super::super) const READ_WRITE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct RoleList {}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct AuthEnable {}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Status {}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    pub(in super::super) header: Option<Header>,
    #[prost(int64, tag = "9")]
    pub(in super::super) bytes_in_use: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Header {
    #[prost(int64, tag = "3")]
    pub(in super::super) revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct Compact {
    #[prost(int64, tag = "1")]
    pub(in super::super) revision: i64,
}

/// The end of the range of all keys that begin with `prefix`, which must end in a character below `0xff`.
pub(in super::super) fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}
