"""Comparison of acceleration methods at equal compute: methods x budgets x prompts x seeds."""
