"""MTEB-lite: mteb's own task classes over small or local data, the scorecard and the report."""
