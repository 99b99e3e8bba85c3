"""A training harness for Slurm clusters: one typed config, one submitted job, metrics that name the stall, unattended restart."""

__version__ = "0.1.0"
