-- treatments_checked: treatments, and how large a share of the wells no flag concerns.
-- Grain: one row per (treatment)
-- Reads: feature_set.treatments, feature_set.well_profiles_passing
-- Columns: as in treatments; passing_share 0 to 1
--   In a view of its own: DuckDB does a join even where nothing of it is asked for, and this one reads the
--   quality of every field of the feature set.
CREATE OR REPLACE VIEW feature_set.treatments_checked AS
WITH passing AS (
    SELECT
        wells.treatment,
        count(*) AS well_count
    FROM feature_set.well_profiles_passing AS wells
    GROUP BY wells.treatment
)

SELECT
    treatments.* EXCLUDE (embedding),
    coalesce(passing.well_count, 0) / treatments.well_count AS passing_share,
    treatments.embedding
FROM feature_set.treatments AS treatments
LEFT JOIN passing ON treatments.treatment = passing.treatment;
