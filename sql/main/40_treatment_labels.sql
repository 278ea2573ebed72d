-- treatment_labels: annotations resolved to treatments; a label without a concentration holds at all of them.
-- Grain: one row per (treatment, kind, label)
-- Reads: treatments, annotations
-- Columns: kind is moa, target, pathway or gene_family; concentrations match to 9 digits (0.1 + 0.2 is 0.3)
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
                abs(treatments.concentration - annotations.concentration) <= 1e-9 * annotations.concentration
                AND (annotations.unit IS NULL OR treatments.unit = annotations.unit)
            )
        );
