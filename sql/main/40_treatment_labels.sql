-- treatment_labels: annotations resolved to treatments; a label without a concentration holds at all of them.
-- Grain: one row per (treatment, kind, label)
-- Reads: treatments, annotations
-- Columns: kind is moa, target, pathway or gene_family
CREATE OR REPLACE VIEW main.treatment_labels AS
SELECT DISTINCT
    treatments.treatment,
    annotations.kind,
    annotations.label
FROM main.treatments
INNER JOIN main.annotations
    ON
        treatments.compound = annotations.compound
        AND (
            annotations.concentration IS NULL
            OR (
                treatments.concentration = annotations.concentration
                AND (annotations.unit IS NULL OR treatments.unit = annotations.unit)
            )
        );
