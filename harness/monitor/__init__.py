"""Prometheus beside the runs: starts what is installed, keeps its target list, asks it questions. Knows nothing of torch or Slurm."""
