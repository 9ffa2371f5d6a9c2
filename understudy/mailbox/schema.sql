-- Version 1 of the store. Later versions are steps in migrations.py; this file never changes once released.
-- Numbers are given by the library in order of creation, so that rows of one burst lie together.

CREATE TABLE owner (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    store_id TEXT NOT NULL,
    created_at REAL NOT NULL,
    epoch INTEGER NOT NULL,        -- grows with every opening; every commit checks it
    clean INTEGER NOT NULL,        -- 1: closed in good order, no turn was interrupted
    last_message INTEGER NOT NULL, -- no message number above it was ever given
    last_actor INTEGER NOT NULL    -- the same of erased actors
) STRICT;

CREATE TABLE actor (
    no INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    UNIQUE (kind, id)
) STRICT;

CREATE TABLE snapshot (
    actor INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE message (
    no INTEGER PRIMARY KEY,
    actor INTEGER NOT NULL,
    position INTEGER NOT NULL,
    handler TEXT NOT NULL,
    body BLOB NOT NULL,
    head BLOB NOT NULL,
    key TEXT,
    caller INTEGER,
    caller_key BLOB,
    due_at REAL,
    started INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    not_before REAL,
    history BLOB,
    checksum INTEGER NOT NULL
) STRICT;

-- due_at stands before position: the mail that can be delivered is one range of the index, however many timers wait.
CREATE INDEX message_mailbox ON message (actor, due_at, position);
CREATE INDEX message_due ON message (due_at, no) WHERE due_at IS NOT NULL;
CREATE INDEX message_key ON message (actor, handler, key) WHERE key IS NOT NULL;
CREATE INDEX message_caller ON message (caller) WHERE caller IS NOT NULL;
CREATE INDEX message_started ON message (started) WHERE started <> 0;
CREATE INDEX message_suspect ON message (actor) WHERE crashes >= 2;

CREATE TABLE event (
    actor INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (actor, seq)
) STRICT, WITHOUT ROWID;

-- Appended only; `no` keeps the order of writing. The last row of a key counts.
CREATE TABLE journal (
    no INTEGER PRIMARY KEY,
    message INTEGER NOT NULL,
    key BLOB NOT NULL,
    outcome BLOB NOT NULL,
    after BLOB,
    child INTEGER,
    checksum INTEGER NOT NULL
) STRICT;

CREATE INDEX journal_message ON journal (message);

CREATE TABLE result (
    no INTEGER PRIMARY KEY,
    actor INTEGER NOT NULL,
    handler TEXT NOT NULL,
    key TEXT,
    digest BLOB NOT NULL,
    outcome BLOB NOT NULL,
    state TEXT NOT NULL,
    finished_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    correlation TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;

CREATE INDEX result_key ON result (actor, handler, key);
CREATE INDEX result_expiry ON result (expires_at);

CREATE TABLE dead_letter (
    no INTEGER PRIMARY KEY,
    actor INTEGER NOT NULL,
    position INTEGER NOT NULL,
    handler TEXT NOT NULL,
    body BLOB NOT NULL,
    head BLOB NOT NULL,
    key TEXT,
    caller INTEGER,
    caller_key BLOB,
    due_at REAL,
    started INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    not_before REAL,
    history BLOB,
    checksum INTEGER NOT NULL,
    failure BLOB NOT NULL,
    at REAL NOT NULL
) STRICT;

CREATE INDEX dead_letter_key ON dead_letter (actor, handler, key);

CREATE TABLE trace (
    no INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    correlation TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE INDEX trace_correlation ON trace (correlation);

CREATE TABLE turns (
    kind TEXT NOT NULL,
    handler TEXT NOT NULL,
    finished INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    PRIMARY KEY (kind, handler)
) STRICT, WITHOUT ROWID;
