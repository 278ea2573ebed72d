-- images_as_loaded: plates of which main.fields lacks images that were seen, holds one twice, or has no load.
-- main.fields is shared: feature sets may have seen the same images, or one of them more than another.
WITH loads AS (
    SELECT
        plate_loads.source,
        plate_loads.batch,
        plate_loads.plate,
        max(plate_loads.images_seen) AS images_seen
    FROM main.plate_loads
    GROUP BY plate_loads.source, plate_loads.batch, plate_loads.plate
),

images AS (
    SELECT
        fields.source,
        fields.batch,
        fields.plate,
        count(*) AS images_there,
        count(DISTINCT hash(fields.well, fields.field, fields.cell)) AS different
    FROM main.fields
    GROUP BY fields.source, fields.batch, fields.plate
)

SELECT
    source,
    batch,
    plate,
    loads.images_seen,
    coalesce(images.images_there, 0) AS images_there,
    coalesce(images.different, 0) AS different
FROM loads
FULL JOIN images USING (source, batch, plate)
WHERE
    loads.plate IS NULL
    OR coalesce(images.images_there, 0) < loads.images_seen
    OR images.images_there <> images.different;
