-- rejections_as_loaded: loads that rejected more, or less, than is listed with a reason.
-- Every image, cell or imported row that was rejected has one row in main.rejections.
-- Loads of before profiles were counted (nothing seen at all) are not compared.
WITH listed AS (
    SELECT
        rejections.feature_set,
        rejections.source,
        rejections.batch,
        rejections.plate,
        count(*) AS listed
    FROM main.rejections
    GROUP BY rejections.feature_set, rejections.source, rejections.batch, rejections.plate
)

SELECT
    feature_set,
    source,
    batch,
    plate,
    loads.images_rejected,
    loads.cells_rejected,
    loads.profiles_rejected,
    coalesce(listed.listed, 0) AS listed
FROM main.plate_loads AS loads
FULL JOIN listed USING (feature_set, source, batch, plate)
WHERE
    loads.run IS NULL
    OR (
        loads.images_seen + loads.cells_seen + loads.profiles_seen > 0
        AND loads.images_rejected + loads.cells_rejected + loads.profiles_rejected
        <> coalesce(listed.listed, 0)
    );
