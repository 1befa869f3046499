"""Prompts x seeds in shards that can be stopped, killed and started again: every clip once, none lost."""
