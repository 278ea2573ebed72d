-- label_lists: the labels of each treatment that has any, one sorted list a kind.
-- Grain: one row per (treatment)
-- Reads: treatment_labels
-- Columns: moa, target, pathway, gene_family: lists of labels, NULL where there are none
--   What the views above wells join: treatment_annotations would go through all layouts a second time.
CREATE OR REPLACE VIEW main.label_lists AS
SELECT
    labels.treatment,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'moa')) AS moa,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'target')) AS target,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'pathway')) AS pathway,
    list_sort(list(labels.label) FILTER (WHERE labels.kind = 'gene_family')) AS gene_family
FROM main.treatment_labels AS labels
GROUP BY labels.treatment;
