-- consensus: mean, median or trimmed mean over all wells of each treatment, as the feature set says.
-- Grain: one row per (treatment)
-- Reads: feature_set.treatments, feature_set.well_profiles
-- Columns: as in treatments; embedding FLOAT[dim]
CREATE OR REPLACE VIEW feature_set.consensus AS
WITH profiles AS (
    SELECT
        wells.treatment,
        elementwise(consensus_operator, wells.embedding) AS embedding
    FROM feature_set.well_profiles AS wells
    WHERE wells.treatment IS NOT NULL
    GROUP BY wells.treatment
)

SELECT
    treatments.* EXCLUDE (embedding),
    profiles.embedding
FROM feature_set.treatments AS treatments
INNER JOIN profiles ON treatments.treatment = profiles.treatment;
