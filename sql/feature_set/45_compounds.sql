-- compounds: profile of each compound over all its wells, whatever the concentration.
-- Grain: one row per (compound)
-- Reads: feature_set.well_profiles, compound_annotations
-- Columns: *_count in numbers; plates (source/batch/plate), batches (source/batch),
--   treatments, sources, positions (well), moa, target, pathway, gene_family are sorted lists, labels NULL
--   where there are none
--   replicate_cosine: median cosine between its wells, -1 to 1, or between 24 of them; NULL where no pair is
--   embedding FLOAT[dim], by the treatment_operator of the feature set
--   Labels are those of all its treatments. Wells without a compound (empty, or no layout) are left out.
CREATE OR REPLACE VIEW feature_set.compounds AS
WITH grouped AS (
    SELECT
        profiles.compound,
        list_sort(list(DISTINCT profiles.treatment)) AS treatments,
        profiles.part_summary
    FROM feature_set.well_profiles AS profiles
    WHERE profiles.compound IS NOT NULL
    GROUP BY profiles.compound
)

SELECT
    grouped.* EXCLUDE (drawn, embedding),
    grouped.part_replicate_cosine,
    labels.* EXCLUDE (compound),
    grouped.embedding
FROM grouped
LEFT JOIN main.compound_annotations AS labels ON grouped.compound = labels.compound;
