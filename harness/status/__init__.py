"""`python -m harness.status [RUN]`: one screen that says how a run is doing, with or without Prometheus."""
