-- layouts_as_loaded: loads whose count of wells in the layout is not that of the layout.
WITH layouts AS (
    SELECT
        wells.source,
        wells.batch,
        wells.plate,
        count(*) AS wells_there
    FROM main.wells
    GROUP BY wells.source, wells.batch, wells.plate
)

SELECT
    loads.feature_set,
    source,
    batch,
    plate,
    loads.wells_in_layout,
    coalesce(layouts.wells_there, 0) AS wells_there
FROM main.plate_loads AS loads
LEFT JOIN layouts USING (source, batch, plate)
WHERE loads.wells_in_layout <> coalesce(layouts.wells_there, 0);
