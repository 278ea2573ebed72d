-- treatment_annotations: the labels of each treatment, one sorted list a kind.
-- Grain: one row per (treatment), treatments without any label included
-- Reads: treatments, label_lists
-- Columns: moa, target, pathway, gene_family: lists of labels, NULL where there are none
CREATE OR REPLACE VIEW main.treatment_annotations AS
SELECT
    treatments.treatment,
    labels.moa,
    labels.target,
    labels.pathway,
    labels.gene_family
FROM main.treatments
LEFT JOIN main.label_lists AS labels ON treatments.treatment = labels.treatment;
