"""Writes the weights of a run's checkpoint as a Hugging Face model, whatever layout trained them."""
