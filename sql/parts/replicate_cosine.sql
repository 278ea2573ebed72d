-- replicate_cosine: median cosine between the wells of a group, each pair once; NULL where there is no pair.
-- Stands for this column where a view says `grouped.part_replicate_cosine`; `grouped.drawn` are the profiles.
--   Its loops run over numbers: a slice of the profiles would be copied again and again, eight times slower.
SELECT
    list_median(flatten([
        [
            list_cosine_similarity(grouped.drawn[i]::DOUBLE[], grouped.drawn[j]::DOUBLE[])
            FOR j IN range(i + 1, len(grouped.drawn) + 1)
        ]
        FOR i IN range(1, len(grouped.drawn) + 1)
    ])) AS replicate_cosine
FROM grouped;
