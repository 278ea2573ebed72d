-- labels: the labels that hold for a treatment, one sorted list a kind; as treatment_labels has them.
-- Stands for these columns where a view says `grouped.part_labels`; `labels` are those of its compound.
SELECT
    nullif(list_sort(list_distinct([
        entry['label'] FOR entry IN labels.entries
        IF entry['kind'] = 'moa' AND (
            entry['concentration'] IS NULL
            OR (
                abs(grouped.concentration - entry['concentration']) <= 1e-9 * entry['concentration']
                AND (entry['unit'] IS NULL OR grouped.unit = entry['unit'])
            )
        )
    ])), []) AS moa,
    nullif(list_sort(list_distinct([
        entry['label'] FOR entry IN labels.entries
        IF entry['kind'] = 'target' AND (
            entry['concentration'] IS NULL
            OR (
                abs(grouped.concentration - entry['concentration']) <= 1e-9 * entry['concentration']
                AND (entry['unit'] IS NULL OR grouped.unit = entry['unit'])
            )
        )
    ])), []) AS target,
    nullif(list_sort(list_distinct([
        entry['label'] FOR entry IN labels.entries
        IF entry['kind'] = 'pathway' AND (
            entry['concentration'] IS NULL
            OR (
                abs(grouped.concentration - entry['concentration']) <= 1e-9 * entry['concentration']
                AND (entry['unit'] IS NULL OR grouped.unit = entry['unit'])
            )
        )
    ])), []) AS pathway,
    nullif(list_sort(list_distinct([
        entry['label'] FOR entry IN labels.entries
        IF entry['kind'] = 'gene_family' AND (
            entry['concentration'] IS NULL
            OR (
                abs(grouped.concentration - entry['concentration']) <= 1e-9 * entry['concentration']
                AND (entry['unit'] IS NULL OR grouped.unit = entry['unit'])
            )
        )
    ])), []) AS gene_family
FROM grouped, labels;
