-- consensus_checked: consensus, and how large a share of the wells no flag concerns.
-- Grain: one row per (treatment)
-- Reads: feature_set.consensus, feature_set.well_profiles_passing
-- Columns: as in consensus; passing_share 0 to 1
--   In a view of its own: DuckDB does a join even where nothing of it is asked for, and this one reads the
--   quality of every field of the feature set.
CREATE OR REPLACE VIEW feature_set.consensus_checked AS
WITH passing AS (
    SELECT
        wells.treatment,
        count(*) AS well_count
    FROM feature_set.well_profiles_passing AS wells
    GROUP BY wells.treatment
)

SELECT
    consensus.* EXCLUDE (embedding),
    coalesce(passing.well_count, 0) / consensus.well_count AS passing_share,
    consensus.embedding
FROM feature_set.consensus AS consensus
LEFT JOIN passing ON consensus.treatment = passing.treatment;
