-- The jobs that use an environment which another job of their build has made. They are searched for like its maker.
CREATE TABLE attached (
    environment_id TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    job_id         TEXT NOT NULL,
    step_key       TEXT,
    agent_id       TEXT NOT NULL,
    url            TEXT NOT NULL,
    attached_at    INTEGER NOT NULL, -- microseconds since 1970
    PRIMARY KEY (environment_id, job_id)
) WITHOUT ROWID;
CREATE INDEX attached_job ON attached (job_id);
