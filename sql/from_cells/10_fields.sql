-- fields: the fields of a feature set, computed from its cells.
-- Grain: one row per (source, batch, plate, well, field)
-- Reads: feature_set.cells
-- Columns: as in the table `fields`; field_operator stands for the operator of the feature set
SELECT
    cells.source,
    cells.batch,
    cells.plate,
    cells.well,
    cells.field,
    count(*)::INTEGER AS cell_count,
    elementwise(field_operator, cells.embedding) AS embedding
FROM feature_set.cells AS cells
GROUP BY cells.source, cells.batch, cells.plate, cells.well, cells.field;
