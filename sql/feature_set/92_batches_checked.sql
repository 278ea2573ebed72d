-- batches_checked: batches, and how large a share of the wells no flag concerns.
-- Grain: one row per (treatment, source, batch)
-- Reads: feature_set.batches, feature_set.well_profiles_passing
-- Columns: as in batches; passing_share 0 to 1
--   In a view of its own: DuckDB does a join even where nothing of it is asked for, and this one reads the
--   quality of every field of the feature set.
CREATE OR REPLACE VIEW feature_set.batches_checked AS
WITH passing AS (
    SELECT
        wells.treatment,
        wells.source,
        wells.batch,
        count(*) AS well_count
    FROM feature_set.well_profiles_passing AS wells
    GROUP BY wells.treatment, wells.source, wells.batch
)

SELECT
    batches.* EXCLUDE (embedding),
    coalesce(passing.well_count, 0) / batches.well_count AS passing_share,
    batches.embedding
FROM feature_set.batches AS batches
LEFT JOIN passing
    ON
        batches.treatment = passing.treatment
        AND batches.source = passing.source
        AND batches.batch = passing.batch;
