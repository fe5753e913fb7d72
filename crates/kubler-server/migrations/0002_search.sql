-- Searches page by (created_at, id), newest first: those of a job within its pipeline, others over everything.
CREATE INDEX environments_created ON environments (created_at DESC, id);
CREATE INDEX environments_owner ON environments (organization_id, project_id, created_at DESC, id);
