-- treatments_passing: treatments over the wells that are not flagged; one whose wells all are is left out.
-- Grain: one row per (treatment)
-- Reads: feature_set.well_profiles_passing, treatment_annotations
-- Columns: concentration in `unit`; *_count in numbers; batches, moa, target, pathway, gene_family are sorted
--   lists, labels NULL where there are none; embedding FLOAT[dim]
--   Wells without a treatment (empty, or no layout) belong to none and are left out.
CREATE OR REPLACE VIEW feature_set.treatments_passing AS
WITH grouped AS (
    SELECT
        profiles.treatment,
        any_value(profiles.compound) AS compound,
        any_value(profiles.concentration) AS concentration,
        any_value(profiles.unit) AS unit,
        CASE
            WHEN min(profiles.control_type) = max(profiles.control_type) THEN min(profiles.control_type)
            ELSE 'mixed'
        END AS control_type,
        count(*) AS well_count,
        sum(profiles.cell_count)::BIGINT AS cell_count,
        count(DISTINCT row(profiles.source, profiles.batch, profiles.plate)) AS plate_count,
        count(DISTINCT row(profiles.source, profiles.batch)) AS batch_count,
        count(DISTINCT profiles.source) AS source_count,
        list_sort(list(DISTINCT profiles.source || '/' || profiles.batch)) AS batches,
        elementwise(avg, profiles.embedding) AS embedding
    FROM feature_set.well_profiles_passing AS profiles
    WHERE profiles.treatment IS NOT NULL
    GROUP BY profiles.treatment
)

SELECT
    grouped.treatment,
    grouped.compound,
    grouped.concentration,
    grouped.unit,
    grouped.control_type,
    grouped.well_count,
    grouped.cell_count,
    grouped.plate_count,
    grouped.batch_count,
    grouped.source_count,
    grouped.batches,
    labels.moa,
    labels.target,
    labels.pathway,
    labels.gene_family,
    grouped.embedding
FROM grouped
LEFT JOIN main.treatment_annotations AS labels ON grouped.treatment = labels.treatment;
