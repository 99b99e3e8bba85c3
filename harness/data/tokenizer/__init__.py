"""Tokenizers as training data is made with them."""
