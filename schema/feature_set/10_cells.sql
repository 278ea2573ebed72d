-- `feature_set` stands for the schema of the feature set that is being made.
CREATE TABLE feature_set.cells (
    source VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    plate VARCHAR NOT NULL,
    well VARCHAR NOT NULL,
    field VARCHAR NOT NULL,
    cell VARCHAR NOT NULL,
    x_px DOUBLE, -- centre of the nucleus, from the field's upper left corner; NULL for a crop
    y_px DOUBLE,
    box_left_px INTEGER, -- half-open box of the cell
    box_top_px INTEGER,
    box_right_px INTEGER,
    box_bottom_px INTEGER,
    nucleus_area_px INTEGER,
    cell_area_px INTEGER,
    is_border BOOLEAN, -- cut by the border of the field
    embedding FLOAT[] NOT NULL
);
