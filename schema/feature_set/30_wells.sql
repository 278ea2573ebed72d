CREATE TABLE feature_set.wells (
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    well VARCHAR NOT NULL,
    field_count INTEGER, -- NULL: not known
    cell_count INTEGER,
    embedding FLOAT[] NOT NULL
);
