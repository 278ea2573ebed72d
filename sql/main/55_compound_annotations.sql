-- compound_annotations: the labels of each compound, those of all its treatments, one sorted list a kind.
-- Grain: one row per (compound), compounds without any label included
-- Reads: treatments, treatment_labels
-- Columns: moa, target, pathway, gene_family: lists of labels, NULL where there are none
CREATE OR REPLACE VIEW main.compound_annotations AS
SELECT
    treatments.compound,
    list_sort(list(DISTINCT labels.label) FILTER (WHERE labels.kind = 'moa')) AS moa,
    list_sort(list(DISTINCT labels.label) FILTER (WHERE labels.kind = 'target')) AS target,
    list_sort(list(DISTINCT labels.label) FILTER (WHERE labels.kind = 'pathway')) AS pathway,
    list_sort(list(DISTINCT labels.label) FILTER (WHERE labels.kind = 'gene_family')) AS gene_family
FROM main.treatments
LEFT JOIN main.treatment_labels AS labels ON treatments.treatment = labels.treatment
WHERE treatments.compound IS NOT NULL
GROUP BY treatments.compound;
