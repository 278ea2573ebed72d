-- Quality of images as data: limits say what is flagged, and flagged rows stay in.

-- One row per whole field that was segmented; none for rejected images and for single-cell crops.
-- Lists run over the channels.
CREATE TABLE main.field_quality (
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    well VARCHAR NOT NULL,
    field VARCHAR NOT NULL,
    channels VARCHAR[] NOT NULL,
    focus DOUBLE[] NOT NULL, -- slope of the power spectrum; NULL element: a constant image
    saturation DOUBLE[] NOT NULL, -- share of pixels, 0 to 1; NULL element: float32 has no largest value
    foreground DOUBLE NOT NULL, -- share of the field inside cells, 0 to 1
    cell_count INTEGER NOT NULL -- 0: a field without cells, of which no feature set has a row
);

-- A measure outside its limits is flagged; NULL: no limit. Changed with `wellhouse quality --set`.
CREATE TABLE main.quality_limits (
    measure VARCHAR NOT NULL,
    lower DOUBLE,
    upper DOUBLE
);
INSERT INTO main.quality_limits VALUES
    ('focus', -2.5, NULL), -- a field and channel: real ones in focus have -2.2 to -1.2, blurred ones less
    ('saturation', NULL, 0.005), -- a field and channel: 1 % or more of what cells cover
    ('foreground', 0.01, NULL), -- a field
    ('cell_count', 1, NULL), -- a field
    ('flagged_fields', NULL, 0.5), -- a well: share of its fields that are flagged
    ('well_cell_count', NULL, NULL), -- a well: depends on the cell line and the number of fields
    ('flagged_wells', NULL, 0.2); -- a plate: share of its wells with a profile that are flagged
