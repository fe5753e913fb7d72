-- One row that is written to find out whether anything can be.
CREATE TABLE written (
    id INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    at INTEGER NOT NULL -- microseconds since 1970
);
