-- batches: profile of each treatment in each batch (Kim 2025, batch-aggregated profiles).
-- Grain: one row per (treatment, source, batch)
-- Reads: feature_set.well_profiles, compound_labels
-- Columns: concentration in `unit`; *_count in numbers; plates (source/batch/plate), batches (source/batch),
--   sources, positions (well), moa, target, pathway, gene_family are sorted lists, labels NULL where none are
--   replicate_cosine: median cosine between its wells, -1 to 1, or between 24 of them; NULL where no pair is
--   embedding FLOAT[dim], by the treatment_operator of the feature set
--   Wells without a treatment (empty, or no layout) belong to none and are left out.
CREATE OR REPLACE VIEW feature_set.batches AS
WITH grouped AS (
    SELECT
        profiles.treatment,
        profiles.source,
        profiles.batch,
        any_value(profiles.compound) AS compound,
        any_value(profiles.concentration) AS concentration,
        any_value(profiles.unit) AS unit,
        profiles.part_summary
    FROM feature_set.well_profiles AS profiles
    WHERE profiles.treatment IS NOT NULL
    GROUP BY profiles.treatment, profiles.source, profiles.batch
)

SELECT
    grouped.* EXCLUDE (drawn, embedding),
    grouped.part_replicate_cosine,
    grouped.part_labels,
    grouped.embedding
FROM grouped
LEFT JOIN main.compound_labels AS labels ON grouped.compound = labels.compound;
