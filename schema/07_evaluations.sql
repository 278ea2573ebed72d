-- What stands beside a score, so that a row of `evaluations` says by itself what it is worth.

ALTER TABLE main.evaluations ADD COLUMN code_version VARCHAR; -- NULL: before this column; the run has it
ALTER TABLE main.evaluations ADD COLUMN baselines VARCHAR; -- JSON: baseline to mean, best and draws
ALTER TABLE main.evaluations ADD COLUMN is_above BOOLEAN; -- better than all its baselines; NULL: it has none
