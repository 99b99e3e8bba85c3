"""Learning rate schedule, parameter groups and gradient clipping."""
