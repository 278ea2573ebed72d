-- compound_labels: all labels of each compound that has any, with the concentrations at which they hold.
-- Grain: one row per (compound)
-- Reads: annotations
-- Columns: entries: kind, label, concentration in `unit` (NULL: holds at all of them)
--   What the views above wells join: treatment_annotations would go through all layouts a second time.
CREATE OR REPLACE VIEW main.compound_labels AS
SELECT
    annotations.compound,
    list({
        'kind': annotations.kind,
        'label': annotations.label,
        'concentration': annotations.concentration,
        'unit': annotations.unit
    }) AS entries
FROM main.annotations
GROUP BY annotations.compound;
