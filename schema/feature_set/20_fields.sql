CREATE TABLE feature_set.fields (
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    well VARCHAR NOT NULL,
    field VARCHAR NOT NULL,
    cell_count INTEGER, -- NULL: not known
    embedding FLOAT[] NOT NULL
);
