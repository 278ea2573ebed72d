-- plate_flags: what is wrong with plates as a whole: layout, controls, labels, missing wells.
-- Grain: one row per (source, batch, plate, flag)
-- Reads: plates, wells, annotations, treatment_labels, plate_loads
-- Columns: affected in wells or treatments, the most of any feature set, NULL where the flag is the plate's;
--   feature_sets is the sorted list of those concerned, NULL where the flag holds whatever the feature set
--   Treatments without labels are looked for where the lake has labels at all; controls need none.
CREATE OR REPLACE VIEW main.plate_flags AS
WITH loaded AS (
    SELECT loads.source, loads.batch, loads.plate, loads.feature_set, 'wells without data' AS flag,
        loads.wells_without_data AS affected
    FROM main.plate_loads AS loads
    UNION ALL
    SELECT loads.source, loads.batch, loads.plate, loads.feature_set, 'wells without layout' AS flag,
        loads.wells_without_layout AS affected
    FROM main.plate_loads AS loads
)

SELECT
    plates.source,
    plates.batch,
    plates.plate,
    'no layout' AS flag,
    NULL::BIGINT AS affected,
    NULL::VARCHAR[] AS feature_sets
FROM main.plates
WHERE plates.layout_hash IS NULL
UNION ALL
SELECT
    plates.source,
    plates.batch,
    plates.plate,
    'no negative controls' AS flag,
    NULL::BIGINT AS affected,
    NULL::VARCHAR[] AS feature_sets
FROM main.plates
LEFT JOIN main.wells
    ON
        plates.source = wells.source
        AND plates.batch = wells.batch
        AND plates.plate = wells.plate
        AND wells.control_type = 'negative'
WHERE wells.well IS NULL
UNION ALL
SELECT
    wells.source,
    wells.batch,
    wells.plate,
    'treatments without labels' AS flag,
    count(DISTINCT wells.treatment) AS affected,
    NULL::VARCHAR[] AS feature_sets
FROM main.wells
WHERE
    wells.control_type = 'none'
    AND wells.treatment IS NOT NULL
    AND wells.treatment NOT IN (SELECT labels.treatment FROM main.treatment_labels AS labels)
    AND EXISTS (SELECT 1 FROM main.annotations)
GROUP BY wells.source, wells.batch, wells.plate
UNION ALL
SELECT
    loaded.source,
    loaded.batch,
    loaded.plate,
    loaded.flag,
    max(loaded.affected)::BIGINT AS affected,
    list_sort(list(loaded.feature_set)) AS feature_sets
FROM loaded
WHERE loaded.affected > 0
GROUP BY loaded.source, loaded.batch, loaded.plate, loaded.flag;
