-- The operators of the views above wells. They change what the views compute and nothing that is stored, and
-- so are no part of what a feature set is. Changed with `wellhouse operators`, which renews the views.

ALTER TABLE main.feature_sets ADD COLUMN treatment_operator VARCHAR DEFAULT 'mean';
ALTER TABLE main.feature_sets ADD COLUMN consensus_operator VARCHAR DEFAULT 'mean_of_sources';
