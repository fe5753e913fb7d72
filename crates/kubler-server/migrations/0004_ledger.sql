-- Never holds a row for longer than it takes to write one: what is deleted from here leaves free pages in the file.
CREATE TABLE kept (
    bytes BLOB NOT NULL
);
-- The last checkpoint of the ledger that this store saw, as a signed note: a ledger that does not hold it is not the
-- one that belongs to this store, or an older copy of it.
CREATE TABLE ledger_seen (
    id   INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    key  TEXT NOT NULL, -- the ledger's public key, as a verifier key
    note TEXT NOT NULL
);
