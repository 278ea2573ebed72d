-- consensus: mean over sources of each treatment: every source counts the same, however many its wells.
-- Grain: one row per (treatment)
-- Reads: feature_set.sources, feature_set.treatments
-- Columns: as in treatments; embedding FLOAT[dim]
--   For the mean over all wells, where every well counts the same, read feature_set.treatments.
CREATE OR REPLACE VIEW feature_set.consensus AS
WITH profiles AS (
    SELECT
        per_source.treatment,
        elementwise(avg, per_source.embedding) AS embedding
    FROM feature_set.sources AS per_source
    GROUP BY per_source.treatment
)

SELECT
    treatments.* EXCLUDE (embedding),
    profiles.embedding
FROM feature_set.treatments AS treatments
INNER JOIN profiles ON treatments.treatment = profiles.treatment;
