-- summary: what a group of wells has in common, beside its keys.
-- Stands for these columns where a view says `profiles.part_summary`; `profiles` are its wells.
--   drawn: the profiles that replicate_cosine compares, 24 at most: those whose key has the smallest MD5, so
--   that they are the same every time. A well with a missing element, or nothing but zeros, has no cosine.
SELECT
    CASE
        WHEN min(profiles.control_type) = max(profiles.control_type) THEN min(profiles.control_type)
        ELSE 'mixed'
    END AS control_type,
    count(*) AS well_count,
    count(*) FILTER (WHERE profiles.control_type = 'negative') AS control_count,
    sum(profiles.cell_count)::BIGINT AS cell_count,
    len(list(DISTINCT profiles.source || '/' || profiles.batch || '/' || profiles.plate)) AS plate_count,
    len(list(DISTINCT profiles.source || '/' || profiles.batch)) AS batch_count,
    len(list(DISTINCT profiles.source)) AS source_count,
    list_sort(list(DISTINCT profiles.source || '/' || profiles.batch || '/' || profiles.plate)) AS plates,
    list_sort(list(DISTINCT profiles.source || '/' || profiles.batch)) AS batches,
    list_sort(list(DISTINCT profiles.source)) AS sources,
    list_sort(list(DISTINCT profiles.well)) AS positions,
    arg_min(
        profiles.embedding,
        md5_number_lower(concat_ws('/', profiles.source, profiles.batch, profiles.plate, profiles.well)),
        24
    ) FILTER (
        WHERE list_count(profiles.embedding) = len(profiles.embedding)
        AND (list_min(profiles.embedding) <> 0 OR list_max(profiles.embedding) <> 0)
    ) AS drawn,
    elementwise(treatment_operator, profiles.embedding) AS embedding
FROM profiles;
