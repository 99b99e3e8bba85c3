"""Optimizers, learning rate schedule, gradient clipping, and what watches over steps and weights."""
