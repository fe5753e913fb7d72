-- Which images the pod templates of an environment name: written before a request that brings a new one goes on.
CREATE TABLE images (
    environment_id TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    image          TEXT NOT NULL,    -- as the job wrote it
    repository     TEXT NOT NULL,    -- with its registry, as docker.io/library/nginx; the image itself when it is no name
    last           TEXT NOT NULL,    -- the last part of the repository
    tag            TEXT,
    digest         TEXT,
    named_at       INTEGER NOT NULL, -- microseconds since 1970
    accepted       INTEGER NOT NULL, -- 0 as long as no answer of the API server is known
    PRIMARY KEY (environment_id, image)
) WITHOUT ROWID;
CREATE INDEX images_repository ON images (repository);
CREATE INDEX images_last ON images (last);
CREATE INDEX images_digest ON images (digest);
