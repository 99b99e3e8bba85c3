"""Where jobs run: submission to Slurm or to this machine, and what the batch script does after srun."""
