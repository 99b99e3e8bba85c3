"""Where jobs run: submission to Slurm or to this machine."""
