-- cells_as_loaded: plates whose cells are not as many as their load counted, in the tables of any level.
-- The variable feature_set holds the name of the feature set at hand.
-- A level that does not know its cells (NULL) is not compared.
WITH loads AS (
    SELECT
        plate_loads.source,
        plate_loads.batch,
        plate_loads.plate,
        plate_loads.cells_in
    FROM main.plate_loads
    WHERE plate_loads.feature_set = getvariable('feature_set')
),

cells AS (
    SELECT
        cells.source,
        cells.batch,
        cells.plate,
        count(*) AS cells_there
    FROM feature_set.cells AS cells
    GROUP BY cells.source, cells.batch, cells.plate
),

fields AS (
    SELECT
        fields.source,
        fields.batch,
        fields.plate,
        sum(fields.cell_count)::BIGINT AS cells_of_fields
    FROM feature_set.fields AS fields
    GROUP BY fields.source, fields.batch, fields.plate
),

wells AS (
    SELECT
        wells.source,
        wells.batch,
        wells.plate,
        sum(wells.cell_count)::BIGINT AS cells_of_wells
    FROM feature_set.wells AS wells
    GROUP BY wells.source, wells.batch, wells.plate
)

SELECT
    source,
    batch,
    plate,
    loads.cells_in,
    coalesce(cells.cells_there, 0) AS cells_there,
    fields.cells_of_fields,
    wells.cells_of_wells
FROM loads
FULL JOIN cells USING (source, batch, plate)
LEFT JOIN fields USING (source, batch, plate)
LEFT JOIN wells USING (source, batch, plate)
WHERE
    loads.cells_in IS DISTINCT FROM coalesce(cells.cells_there, 0)
    OR (loads.cells_in > 0 AND fields.cells_of_fields <> loads.cells_in)
    OR (loads.cells_in > 0 AND wells.cells_of_wells <> loads.cells_in);
