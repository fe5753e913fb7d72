//! The server and the identity that a command line means.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use secrecy::SecretString;

use crate::arguments::Connection;
use crate::clock::Deadline;
use crate::exit::{Exit, Failure, Outcome};
use crate::job::token::TokenSource;
use crate::server::client::{Caller, Client};
use crate::server::trust::{self, ClientCertificate, Trust};

/// A server, and who calls it.
pub struct Connected {
    /// Calls the server.
    pub client: Client,
    /// What is believed.
    pub trust: Trust,
    /// Audience of identity tokens.
    pub audience: String,
    identity: CallerIdentity,
}

/// Who calls.
enum CallerIdentity {
    /// Whoever the tokens of this source speak for.
    Tokens(TokenSource),
    /// The holder of the client certificate.
    Operator,
    /// Nobody.
    Nobody,
}

/// What a call is made with. Owns the token as long as the call takes.
pub enum Proof {
    /// A fresh token.
    Token(SecretString),
    /// The client certificate of the connection.
    Certificate,
}

impl Proof {
    /// For the client.
    pub fn caller(&self) -> Caller<'_> {
        match self {
            Self::Token(token) => Caller::Token(token),
            Self::Certificate => Caller::Connection,
        }
    }
}

impl Connected {
    /// What `connection` means; `trust` and `server` stand in for what it leaves out. Nothing is sent yet.
    pub fn new(
        connection: &Connection,
        server: Option<String>,
        trust: Option<Trust>,
    ) -> Outcome<Self> {
        let server = connection.server.clone().or(server).ok_or_else(|| {
            Failure::usage("no server is named")
                .hint("give `--server https://name:port` or set `KUBLER_SERVER`")
        })?;
        let trust = connection
            .ca
            .clone()
            .map(Trust::File)
            .or(trust)
            .unwrap_or(Trust::System);
        let certificate = client_certificate(connection)?;
        let identity = match (&connection.token_file, &certificate) {
            (Some(path), _) => CallerIdentity::Tokens(TokenSource::of_file(path.clone())),
            (None, Some(_)) => CallerIdentity::Operator,
            (None, None) => {
                TokenSource::of_job().map_or(CallerIdentity::Nobody, CallerIdentity::Tokens)
            }
        };
        let client = Client::new(
            &server,
            trust.origin(),
            trust::tls(&trust, certificate.as_ref())?,
        )?;
        let audience = connection
            .audience
            .clone()
            .unwrap_or_else(|| client.server().to_owned());
        Ok(Self {
            client,
            trust,
            audience,
            identity,
        })
    }

    /// A fresh proof of who calls.
    pub fn proof(&self, deadline: Deadline) -> Outcome<Proof> {
        self.proof_unless(deadline, None)
    }

    /// The same; minting ends as soon as `stop` becomes readable.
    pub fn proof_unless(&self, deadline: Deadline, stop: Option<BorrowedFd<'_>>) -> Outcome<Proof> {
        match &self.identity {
            CallerIdentity::Operator => Ok(Proof::Certificate),
            CallerIdentity::Tokens(_) | CallerIdentity::Nobody => {
                self.token(deadline, stop).map(Proof::Token)
            }
        }
    }

    /// A fresh identity token.
    pub fn token(&self, deadline: Deadline, stop: Option<BorrowedFd<'_>>) -> Outcome<SecretString> {
        self.tokens()?.token(&self.audience, deadline, stop)
    }

    /// Where tokens come from.
    pub fn tokens(&self) -> Outcome<&TokenSource> {
        match &self.identity {
            CallerIdentity::Tokens(source) => Ok(source),
            CallerIdentity::Operator => Err(Failure::new(Exit::Denied, "an operator's certificate is no job's identity")
                .hint("environments belong to jobs: run this inside a Buildkite job, or give `--token-file`")),
            CallerIdentity::Nobody => Err(Failure::new(Exit::Denied, "there is no identity to call with").hint(
                "run this inside a Buildkite job, give `--token-file FILE`, or be an operator with `--client-certificate` and `--client-key`",
            )),
        }
    }

    /// The file that tokens come from, as an absolute path.
    pub fn token_file(&self) -> Option<PathBuf> {
        match &self.identity {
            CallerIdentity::Tokens(TokenSource::File(path)) => std::path::absolute(path).ok(),
            _ => None,
        }
    }
}

fn client_certificate(connection: &Connection) -> Outcome<Option<ClientCertificate>> {
    match (&connection.client_certificate, &connection.client_key) {
        (Some(certificate), Some(key)) => Ok(Some(ClientCertificate {
            certificate: certificate.clone(),
            key: key.clone(),
        })),
        (None, None) => Ok(None),
        _ => Err(Failure::usage("a client certificate needs its key")
            .hint("give `--client-certificate` and `--client-key` together")),
    }
}
