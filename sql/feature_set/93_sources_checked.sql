-- sources_checked: sources, and how large a share of the wells no flag concerns.
-- Grain: one row per (treatment, source)
-- Reads: feature_set.sources, feature_set.well_profiles_passing
-- Columns: as in sources; passing_share 0 to 1
--   In a view of its own: DuckDB does a join even where nothing of it is asked for, and this one reads the
--   quality of every field of the feature set.
CREATE OR REPLACE VIEW feature_set.sources_checked AS
WITH passing AS (
    SELECT
        wells.treatment,
        wells.source,
        count(*) AS well_count
    FROM feature_set.well_profiles_passing AS wells
    GROUP BY wells.treatment, wells.source
)

SELECT
    sources.* EXCLUDE (embedding),
    coalesce(passing.well_count, 0) / sources.well_count AS passing_share,
    sources.embedding
FROM feature_set.sources AS sources
LEFT JOIN passing
    ON
        sources.treatment = passing.treatment
        AND sources.source = passing.source;
