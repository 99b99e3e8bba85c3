"""The typed config: its schema, how Hydra composes it, and the checks that cross its fields."""
