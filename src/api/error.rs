//! The closed table of errors: type, HTTP status, exit code, title, hint.
//!
//! docs/errors.md is this table; a test holds the two together.

use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($( $(#[doc = $doc:literal])* $name:ident => $slug:literal, $status:literal, $exit:literal, $title:literal, $hint:literal; )*) => {
        /// What went wrong, by what the caller can do about it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind { $( $(#[doc = $doc])* $name, )* }

        impl ErrorKind {
            /// Every kind, in the order of docs/errors.md.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// The last part of `urn:strongroom:error:…`.
            #[must_use]
            pub const fn slug(self) -> &'static str { match self { $( Self::$name => $slug, )* } }
            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 { match self { $( Self::$name => $status, )* } }
            /// The exit code of the command line.
            #[must_use]
            pub const fn exit_code(self) -> u8 { match self { $( Self::$name => $exit, )* } }
            /// A short, fixed summary.
            #[must_use]
            pub const fn title(self) -> &'static str { match self { $( Self::$name => $title, )* } }
            /// What to do, unless the error brings a better hint.
            #[must_use]
            pub const fn hint(self) -> &'static str { match self { $( Self::$name => $hint, )* } }
        }
    };
}

kinds! {
    /// The request, or a command's argument, makes no sense.
    Malformed => "malformed", 400, 2, "malformed request", "see docs/api.md for the request's form";
    /// The body ended before its declared or terminating end.
    Incomplete => "incomplete", 400, 1, "the body ended early", "nothing was stored; send it again";
    /// The agent does not read the file whose descriptor was passed.
    DescriptorRefused => "descriptor-refused", 400, 1, "the descriptor was refused", "send the bytes as the request's body";
    /// No grant permits it.
    Forbidden => "forbidden", 403, 77, "not permitted", "ask the agent's operator for a grant";
    /// The keyslot prefix.
    Reserved => "reserved", 403, 77, "reserved for keyslots", "choose a key outside the configured keyslots.prefix";
    /// No such object.
    NoSuchObject => "no-such-object", 404, 66, "no such object", "`strongroom ls` shows what is there";
    /// No such bucket.
    NoSuchBucket => "no-such-bucket", 404, 66, "no such bucket", "check the bucket's name, region and account";
    /// No such route, key or token.
    NotFound => "not-found", 404, 66, "not found", "see docs/api.md for the routes";
    /// The method is not one of the route's.
    MethodNotAllowed => "method-not-allowed", 405, 2, "method not allowed", "see docs/api.md for the routes";
    /// The client sends too slowly, or not at all.
    TooSlow => "too-slow", 408, 75, "the client was too slow", "send the body without long pauses";
    /// Somebody else changed the object meanwhile.
    Conflict => "conflict", 409, 75, "changed meanwhile", "try again";
    /// The bytes do not begin where the upload stands.
    UploadOffset => "upload-offset", 409, 75, "the upload stands elsewhere", "ask where it stands (HEAD), and go on from there";
    /// It was completed, aborted or given up, or its source changed.
    UploadGone => "upload-gone", 410, 75, "the upload cannot go on", "begin it again: the same request makes a new one";
    /// `If-None-Match: *` and the object exists.
    AlreadyExists => "already-exists", 412, 73, "already exists", "nothing was stored; choose another key, or allow overwriting";
    /// A limit of ours or of S3's.
    TooLarge => "too-large", 413, 1, "over a limit", "see docs/limits.md";
    /// The object is shorter than the range's start.
    Range => "range", 416, 1, "range not satisfiable", "ask for a range inside the object";
    /// Authentication of header or frame failed.
    Altered => "altered", 422, 65, "the object was altered", "do not use it; compare with another copy or version, and find out who can write to the bucket";
    /// It ends too early or goes on too long.
    Truncated => "truncated", 422, 65, "the object was truncated or extended", "do not use it; fetch another version, and find out who can write to the bucket";
    /// Its context names another place.
    Elsewhere => "elsewhere", 422, 65, "the object belongs elsewhere", "if it was copied on purpose, name its first place with --bound-to";
    /// An older message than the catalogue's receipt.
    RolledBack => "rolled-back", 422, 65, "an older version was served as current", "ask for a version id to read an old version on purpose";
    /// No wrapping key at hand opens it.
    NoKey => "no-key", 422, 65, "no key of ours opens the object", "`strongroom inspect` names the wrapping keys it needs";
    /// None of our context pairs, and the caller did not allow that.
    Unbound => "unbound", 422, 65, "the message is not bound to this place", "if you trust where it came from, use --allow-unbound";
    /// Version 1 without commitment, and the caller did not allow that.
    Uncommitted => "uncommitted", 422, 65, "the message has no key commitment", "if you trust who wrote it, use --allow-uncommitted";
    /// Not an ESDK message.
    NotAMessage => "not-a-message", 422, 65, "not a Strongroom object", "it was stored by something else; fetch it with that";
    /// A well-formed message beyond what we read.
    Unsupported => "unsupported", 422, 65, "the message is beyond our limits", "docs/limits.md has them; a stock AWS Encryption SDK may read it";
    /// Too many requests, or no memory for one more.
    Busy => "busy", 429, 75, "the agent is busy", "try again after the time in Retry-After";
    /// Headers beyond the limit.
    HeadersTooLarge => "headers-too-large", 431, 2, "the request's headers are too large", "shorten them";
    /// A bug, or something no table foresaw.
    Internal => "internal", 500, 1, "internal error", "the agent's log has the details under this request id";
    /// Known, and not in this release.
    NotImplemented => "not-implemented", 501, 1, "not implemented", "use a later release";
    /// S3 answered with an error.
    StoreFailed => "store-failed", 502, 1, "the store failed", "the agent's log has the store's answer under this request id";
    /// S3 refused the credentials.
    StoreDenied => "store-denied", 502, 1, "the store refused our credentials", "check the agent's AWS credentials and the bucket's policy";
    /// S3 cannot be reached, or asks us to slow down.
    StoreAway => "store-away", 502, 75, "the store cannot be reached", "check the endpoint and the network; the same request may succeed later";
    /// The object is in an archive tier.
    Archived => "archived", 409, 75, "the object is archived", "`strongroom restore --tier standard` asks the store for it; read it when it is there";
    /// The token or its worker is away.
    TokenAway => "token-away", 503, 75, "the token is away", "`strongroom status` says why; the same request may succeed later";
    /// The token's PIN was refused.
    TokenLocked => "token-locked", 503, 75, "the token refused its PIN", "correct the PIN file, then reload the agent (SIGHUP); nothing is retried before";
    /// The token, a key or the agent is set up wrongly.
    Misconfigured => "misconfigured", 503, 75, "the set-up is wrong", "`strongroom doctor` names the fault and its remedy";
    /// It has reached its wrap_limit, and has no successor.
    KeyExhausted => "key-exhausted", 503, 75, "the wrapping key is used up", "make a new key the ring's active one (docs/operations.md, rotation); what the old one wrapped is still read";
    /// The catalogue cannot be read or written.
    StateFailed => "state-failed", 503, 75, "the state directory failed", "check space and permissions of agent.state_dir";
    /// The audit log cannot be written.
    AuditFailed => "audit-failed", 503, 75, "the audit log cannot be written", "check space and permissions of audit.dir; nothing is stored, read, listed or deleted until it can be written again";
    /// SIGTERM was received.
    ShuttingDown => "shutting-down", 503, 75, "the agent is stopping", "try again when it runs again";
    /// The client cannot reach the agent. Never sent over HTTP.
    AgentAway => "agent-away", 503, 75, "the agent cannot be reached", "is it running? `systemctl status strongroom`, or `strongroom agent`";
    /// No room to spool.
    SpoolFull => "spool-full", 507, 75, "the spool is full", "raise spool.max or agent.memory_budget, or send fewer large objects at once";
}

impl ErrorKind {
    /// The kind with this slug.
    #[must_use]
    pub fn from_slug(slug: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.slug() == slug)
    }
}

/// One error: a kind, what the client may read, and what only the log gets.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Error {
    /// Its place in the table.
    pub kind: ErrorKind,
    /// What failed and why, for the client. Never a secret.
    pub detail: String,
    /// A better hint than the table's.
    pub hint: Option<String>,
    /// For the log alone.
    pub log: Option<String>,
    /// When the same request may succeed, if that is known.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error of `kind`, with what failed and why.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            hint: None,
            log: None,
            retry_after: None,
        }
    }

    /// Attaches a better hint than the table's.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Attaches what only the log gets.
    #[must_use]
    pub fn log(mut self, log: impl std::fmt::Display) -> Self {
        self.log = Some(log.to_string());
        self
    }

    /// Attaches when the same request may succeed.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The hint to show.
    #[must_use]
    pub fn hint_text(&self) -> &str {
        self.hint.as_deref().unwrap_or_else(|| self.kind.hint())
    }

    /// What goes over the wire (RFC 9457).
    #[must_use]
    pub fn problem(&self, request_id: &str) -> Problem {
        Problem {
            kind: format!("urn:strongroom:error:{}", self.kind.slug()),
            title: self.kind.title().to_owned(),
            status: self.kind.status(),
            detail: self.detail.clone(),
            hint: self.hint_text().to_owned(),
            request_id: request_id.to_owned(),
        }
    }
}

/// `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:strongroom:error:…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind's fixed summary.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What failed and why.
    pub detail: String,
    /// What to do.
    pub hint: String,
    /// Where to look in the agent's log.
    pub request_id: String,
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        let kind = problem
            .kind
            .strip_prefix("urn:strongroom:error:")
            .and_then(ErrorKind::from_slug)
            .unwrap_or(ErrorKind::Internal);
        Self::new(kind, problem.detail).hint(problem.hint)
    }
}
