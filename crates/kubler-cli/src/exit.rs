//! How a command ends: exit codes with meaning, and errors that say what to do next.

use kubler_api::error::{ErrorCode, Problem};

/// Added to the number of the signal that ended the command of `kubler run`.
pub const SIGNAL_BASE: i32 = 128;

macro_rules! exits {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal;)+) => {
        /// What an exit code means. `kubler run` passes the code of its command through instead, and
        /// 128 + n when signal n ended it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Exit {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl Exit {
            /// Every exit code with its meaning, for the help page.
            pub const ALL: &'static [(i32, &'static str)] = &[$(($code, concat!($($doc),+)),)+];
        }
    };
}

exits! {
    /// Done.
    Done = 0;
    /// Failed for a reason that no other code names.
    Failed = 1;
    /// The command line, the configuration or the request is wrong.
    Usage = 2;
    /// No identity, or no policy that allows it.
    Denied = 3;
    /// There is no such thing, or it has ended.
    Ended = 4;
    /// The server, or what signs identities, cannot be reached now.
    Unavailable = 5;
    /// The environment could not be made, or broke.
    EnvironmentFailed = 6;
    /// A check found something: a changed ledger, a policy test that failed, a diagnosis, environments that differ.
    Found = 7;
}

/// Why a command failed: one sentence, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What went wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The server's own code, when it answered.
    pub code: Option<ErrorCode>,
    /// Names the request in the ledger.
    pub request_id: Option<String>,
    /// Worth trying again, and after how many seconds when the server said so.
    pub retry: Retry,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No.
    Never,
    /// Soon.
    Soon,
    /// Not before so many seconds.
    After(u64),
}

/// What every command returns.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure with a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
            code: None,
            request_id: None,
            retry: Retry::Never,
        }
    }

    /// Wrong use.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something this machine would not do.
    pub fn io(doing: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, format!("cannot {doing}: {error}"))
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Worth another try.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// What the server said.
    pub fn problem(problem: Problem, retry_after: Option<u64>) -> Self {
        Self {
            exit: exit_of(problem.code),
            message: if problem.detail.is_empty() {
                problem.title
            } else {
                problem.detail
            },
            hint: Some(problem.hint).filter(|hint| !hint.is_empty()),
            code: Some(problem.code),
            request_id: Some(problem.request_id).filter(|id| !id.is_empty()),
            retry: match (problem.code, retry_after) {
                (
                    ErrorCode::Unavailable | ErrorCode::StorageFull | ErrorCode::TooMany,
                    Some(seconds),
                ) => Retry::After(seconds),
                (
                    ErrorCode::Unavailable
                    | ErrorCode::StorageFull
                    | ErrorCode::TooMany
                    | ErrorCode::Internal,
                    None,
                ) => Retry::Soon,
                _ => Retry::Never,
            },
        }
    }

    /// The lines for stderr.
    pub fn lines(&self) -> String {
        use std::fmt::Write as _;
        let mut lines = match self.code {
            Some(code) => format!("error: {} (`{}`)", self.message, code.as_str()),
            None => format!("error: {}", self.message),
        };
        if let Some(hint) = &self.hint {
            let _ = write!(lines, "\nhint: {hint}");
        }
        if let Some(id) = &self.request_id {
            let _ = write!(lines, "\nrequest: {id}");
        }
        lines
    }
}

const fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::InvalidRequest | ErrorCode::TooLarge | ErrorCode::MethodNotAllowed => {
            Exit::Usage
        }
        ErrorCode::Unauthenticated | ErrorCode::Denied => Exit::Denied,
        ErrorCode::NotFound | ErrorCode::EnvironmentEnded => Exit::Ended,
        ErrorCode::Conflict => Exit::Failed,
        ErrorCode::TooMany
        | ErrorCode::Internal
        | ErrorCode::StorageFull
        | ErrorCode::Unavailable => Exit::Unavailable,
        ErrorCode::Differs => Exit::Found,
    }
}
