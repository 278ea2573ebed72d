-- How rows are stored: in small groups of rows, since a row of an embedding is long.
-- A writer holds a whole group, several times over: with DuckDB's 122,880 rows, 11,000 cells of 1,500
-- features took 390 MiB to write; with 2,048, 117 MiB.

CALL lake.set_option('parquet_row_group_size', 2048);
