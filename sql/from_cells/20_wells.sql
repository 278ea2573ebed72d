-- wells: the wells of a feature set, computed from its fields.
-- Grain: one row per (source, batch, plate, well)
-- Reads: feature_set.fields
-- Columns: as in the table `wells`; well_operator stands for the operator of the feature set
--   A count of cells that one field does not say is not known for its well.
SELECT
    fields.source,
    fields.batch,
    fields.plate,
    fields.well,
    count(*)::INTEGER AS field_count,
    CASE WHEN count(*) = count(fields.cell_count) THEN sum(fields.cell_count)::INTEGER END AS cell_count,
    elementwise(well_operator, fields.embedding) AS embedding
FROM feature_set.fields AS fields
GROUP BY fields.source, fields.batch, fields.plate, fields.well;
