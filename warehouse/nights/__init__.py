"""The night job: find what is new, take it in, correct, index, evaluate, check, and leave a report."""
