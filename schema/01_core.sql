-- What every feature set shares. DuckLake has no keys: rows are kept unique by warehouse/ingest.py.
-- Ids are text. Times are UTC. Missing is NULL, never zero.

CREATE TABLE main.schema_version (
    version INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    code_version VARCHAR NOT NULL,
    applied_at TIMESTAMP NOT NULL
);

-- One row, updated by every write transaction: of two that run at once the second conflicts, and its retry
-- sees what the first wrote. Without it two processes can each find a plate absent and both insert it.
CREATE TABLE main.write_gate (writes BIGINT NOT NULL);
INSERT INTO main.write_gate VALUES (0);

CREATE TABLE main.runs (
    run VARCHAR NOT NULL,
    command VARCHAR NOT NULL,
    settings VARCHAR NOT NULL, -- JSON
    code_version VARCHAR NOT NULL,
    username VARCHAR,
    started_at TIMESTAMP NOT NULL
);

CREATE TABLE main.plates (
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    layout_hash VARCHAR, -- NULL: no layout was given for this plate
    run VARCHAR NOT NULL,
    added_at TIMESTAMP NOT NULL
);

CREATE TABLE main.wells (
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    well VARCHAR NOT NULL,
    row_number INTEGER NOT NULL, -- 1 = A
    column_number INTEGER NOT NULL,
    treatment VARCHAR, -- compound@concentration; NULL: an empty well
    compound VARCHAR,
    concentration DOUBLE,
    unit VARCHAR,
    control_type VARCHAR NOT NULL -- negative, positive, none
);

CREATE TABLE main.annotations (
    compound VARCHAR NOT NULL,
    concentration DOUBLE, -- NULL: holds at every concentration
    unit VARCHAR,
    kind VARCHAR NOT NULL, -- moa, target, pathway, gene_family
    label VARCHAR NOT NULL
);

-- One row per field of view, or per single-cell crop; lists run over the channels.
CREATE TABLE main.fields (
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    well VARCHAR NOT NULL,
    field VARCHAR NOT NULL,
    cell VARCHAR, -- NULL: a whole field
    channels VARCHAR[] NOT NULL,
    paths VARCHAR[] NOT NULL,
    planes INTEGER[] NOT NULL, -- NULL element: the file holds this one channel
    digests VARCHAR[] NOT NULL -- BLAKE2b of each file; NULL element: no file was there
);

CREATE TABLE main.feature_sets (
    feature_set VARCHAR NOT NULL,
    extractor VARCHAR NOT NULL,
    extractor_version VARCHAR NOT NULL,
    weights VARCHAR, -- SHA-256 of the weights file; NULL: the method has none
    parameters VARCHAR NOT NULL, -- JSON
    channels VARCHAR[] NOT NULL,
    dim INTEGER NOT NULL,
    feature_names VARCHAR[] NOT NULL,
    entry_level VARCHAR NOT NULL, -- cell, field, well: the finest level it holds
    field_operator VARCHAR NOT NULL, -- cells to field
    well_operator VARCHAR NOT NULL, -- fields to well
    run VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);

-- What is in, per feature set and plate, with the counts that must balance.
CREATE TABLE main.plate_loads (
    feature_set VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    content_hash VARCHAR NOT NULL,
    images_seen INTEGER NOT NULL, -- whole fields, or single-cell crops
    images_in INTEGER NOT NULL,
    images_rejected INTEGER NOT NULL,
    cells_seen INTEGER NOT NULL,
    cells_in INTEGER NOT NULL,
    cells_rejected INTEGER NOT NULL,
    wells_in_layout INTEGER NOT NULL,
    wells_in INTEGER NOT NULL,
    wells_without_data INTEGER NOT NULL, -- in the layout, no profile
    wells_without_layout INTEGER NOT NULL, -- a profile, not in the layout
    run VARCHAR NOT NULL,
    loaded_at TIMESTAMP NOT NULL
);

CREATE TABLE main.rejections (
    feature_set VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    well VARCHAR,
    field VARCHAR, -- NULL: the whole well
    cell VARCHAR, -- NULL: the whole field
    reason VARCHAR NOT NULL
);

CREATE TABLE main.recipes (
    feature_set VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL, -- the name in wells__<recipe>
    steps VARCHAR NOT NULL, -- canonical text, parameters included
    dim INTEGER NOT NULL,
    feature_names VARCHAR[] NOT NULL, -- what is left after steps that drop features
    run VARCHAR NOT NULL,
    fitted_at TIMESTAMP NOT NULL
);

CREATE TABLE main.recipe_fits (
    feature_set VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    step INTEGER NOT NULL, -- 0 = the first
    step_name VARCHAR NOT NULL,
    source VARCHAR, -- NULL: fitted on all
    batch VARCHAR,
    plate VARCHAR,
    array_name VARCHAR NOT NULL,
    array_row INTEGER, -- NULL: a one-dimensional array
    array_values DOUBLE[] NOT NULL
);

CREATE TABLE main.evaluations (
    evaluation VARCHAR NOT NULL,
    feature_set VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    level VARCHAR NOT NULL,
    metric VARCHAR NOT NULL,
    label_kind VARCHAR, -- NULL: the metric uses no labels
    value DOUBLE, -- NULL: nothing could be scored
    n INTEGER NOT NULL, -- queries scored
    parameters VARCHAR NOT NULL, -- JSON
    left_out VARCHAR NOT NULL, -- JSON: reason to count
    snapshot BIGINT NOT NULL,
    run VARCHAR NOT NULL,
    evaluated_at TIMESTAMP NOT NULL
);
