-- Environments. `document` is the whole record as JSON; the other columns are what is searched or must be unique.
CREATE TABLE environments (
    id              TEXT PRIMARY KEY NOT NULL,
    unique_key      TEXT NOT NULL UNIQUE,
    phase           TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    project_id      TEXT NOT NULL,
    project_slug    TEXT NOT NULL,
    run_id          TEXT NOT NULL,
    run_number      INTEGER NOT NULL,
    job_id          TEXT NOT NULL,
    source_commit   TEXT NOT NULL,
    profile         TEXT NOT NULL,
    created_at      INTEGER NOT NULL, -- microseconds since 1970
    gone_at         INTEGER,          -- microseconds since 1970
    version         INTEGER NOT NULL,
    document        TEXT NOT NULL
);
CREATE INDEX environments_phase ON environments (phase);
CREATE INDEX environments_project ON environments (project_slug, run_number);
CREATE INDEX environments_run ON environments (run_id);
CREATE INDEX environments_job ON environments (job_id);
CREATE INDEX environments_commit ON environments (source_commit);

-- One exchange a token. The session's credential is not kept: signing is deterministic, so the same session
-- can be written again from these columns.
CREATE TABLE exchanges (
    token_sha256     TEXT PRIMARY KEY NOT NULL,
    environment_id   TEXT NOT NULL,
    session_id       TEXT NOT NULL,
    exchanged_at     INTEGER NOT NULL, -- microseconds since 1970
    session_end      INTEGER NOT NULL, -- microseconds since 1970
    token_expires_at INTEGER NOT NULL  -- microseconds since 1970; the row is of no use afterwards
);
CREATE INDEX exchanges_expiry ON exchanges (token_expires_at);
