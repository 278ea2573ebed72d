-- treatments: what cells were treated with, compound and concentration together.
-- Grain: one row per (treatment)
-- Reads: wells
-- Columns: concentration in `unit`; control_type is 'mixed' where wells of one treatment disagree;
--   well_count in numbers, over all plates, with or without data
CREATE OR REPLACE VIEW main.treatments AS
SELECT
    wells.treatment,
    any_value(wells.compound) AS compound,
    any_value(wells.concentration) AS concentration,
    any_value(wells.unit) AS unit,
    CASE
        WHEN min(wells.control_type) = max(wells.control_type) THEN min(wells.control_type)
        ELSE 'mixed'
    END AS control_type,
    count(*) AS well_count
FROM main.wells
WHERE wells.treatment IS NOT NULL
GROUP BY wells.treatment;
