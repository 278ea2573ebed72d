-- consensus: mean over sources of each treatment: every source counts the same, however many its wells.
-- Grain: one row per (treatment)
-- Reads: feature_set.sources
-- Columns: concentration in `unit`; *_count in numbers; batches, moa, target, pathway, gene_family are sorted
--   lists, labels NULL where there are none; embedding FLOAT[dim]
--   For the mean over all wells, where every well counts the same, read feature_set.treatments.
CREATE OR REPLACE VIEW feature_set.consensus AS
SELECT
    per_source.treatment,
    any_value(per_source.compound) AS compound,
    any_value(per_source.concentration) AS concentration,
    any_value(per_source.unit) AS unit,
    CASE
        WHEN min(per_source.control_type) = max(per_source.control_type) THEN min(per_source.control_type)
        ELSE 'mixed'
    END AS control_type,
    sum(per_source.well_count)::BIGINT AS well_count,
    sum(per_source.cell_count)::BIGINT AS cell_count,
    sum(per_source.plate_count)::BIGINT AS plate_count,
    sum(per_source.batch_count)::BIGINT AS batch_count,
    count(*) AS source_count,
    list_sort(flatten(list(per_source.batches))) AS batches,
    any_value(per_source.moa) AS moa,
    any_value(per_source.target) AS target,
    any_value(per_source.pathway) AS pathway,
    any_value(per_source.gene_family) AS gene_family,
    elementwise(avg, per_source.embedding) AS embedding
FROM feature_set.sources AS per_source
GROUP BY per_source.treatment;
