-- treatment_annotations: the labels of each treatment, one sorted list a kind.
-- Grain: one row per (treatment), treatments without any label included
-- Reads: treatments, treatment_labels
-- Columns: moa, target, pathway, gene_family: lists of labels, NULL where there are none
CREATE OR REPLACE VIEW main.treatment_annotations AS
SELECT
    treatments.treatment,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'moa')) AS moa,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'target')) AS target,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'pathway')) AS pathway,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'gene_family')) AS gene_family
FROM main.treatments
LEFT JOIN main.treatment_labels AS labels ON treatments.treatment = labels.treatment
GROUP BY treatments.treatment;
