-- The ledger of runs and plates, quarantine, the steps of a night, and plates that a recipe leaves out.

ALTER TABLE main.runs ADD COLUMN finished_at TIMESTAMP; -- NULL: still running, or killed
ALTER TABLE main.runs ADD COLUMN outcome VARCHAR; -- done, failed
ALTER TABLE main.runs ADD COLUMN seconds DOUBLE;
ALTER TABLE main.runs ADD COLUMN snapshot_before BIGINT; -- the newest when the run began
ALTER TABLE main.runs ADD COLUMN snapshot_after BIGINT; -- the newest when it had done its work
ALTER TABLE main.runs ADD COLUMN counts VARCHAR; -- JSON: what went in, was rejected, was put into quarantine

-- Names, sizes and times of the files that a plate came from: equal again, they need not be read again.
ALTER TABLE main.plate_loads ADD COLUMN arrival VARCHAR; -- NULL: did not come by a nightly run
-- Rows of an imported table above cells (wells, fields); 0 where cells or images came.
ALTER TABLE main.plate_loads ADD COLUMN profiles_seen INTEGER DEFAULT 0;
ALTER TABLE main.plate_loads ADD COLUMN profiles_rejected INTEGER DEFAULT 0;

-- What the profiles, layouts and labels were that were scored: equal again, they need not be scored again.
ALTER TABLE main.evaluations ADD COLUMN fingerprint VARCHAR;

-- One row per commit of a plate, never changed: what was done to it, and where its former content is.
CREATE TABLE main.plate_history (
    feature_set VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    outcome VARCHAR NOT NULL, -- added, replaced, relabelled, quarantined, rolled back
    content_hash VARCHAR, -- NULL: in quarantine, or taken out
    former_hash VARCHAR, -- NULL: there was no former content
    former_snapshot BIGINT, -- the last snapshot that holds the former content
    run VARCHAR NOT NULL,
    happened_at TIMESTAMP NOT NULL
);

-- Plates that could not be taken in; what the lake held of them before stays.
CREATE TABLE main.quarantine (
    feature_set VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    job VARCHAR NOT NULL, -- JSON: how to take it in again
    arrival VARCHAR, -- of the files that failed: changed ones are tried again by the next night
    tries INTEGER NOT NULL,
    run VARCHAR NOT NULL,
    first_at TIMESTAMP NOT NULL,
    last_at TIMESTAMP NOT NULL
);

-- The steps of a night, in their order; a night that was cut short is taken up where it stopped.
CREATE TABLE main.night_steps (
    run VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    step VARCHAR NOT NULL, -- ingest, correct, index, evaluate, compact, check
    item VARCHAR NOT NULL, -- a plate, or a feature set with its recipe
    outcome VARCHAR NOT NULL,
    detail VARCHAR, -- why, where it failed
    seconds DOUBLE NOT NULL,
    finished_at TIMESTAMP NOT NULL
);

-- Plates that a recipe cannot correct, and that its table therefore lacks.
CREATE TABLE main.recipe_left_out (
    feature_set VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    reason VARCHAR NOT NULL
);
