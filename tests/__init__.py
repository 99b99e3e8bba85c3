"""Tests; folders mirror harness/."""
