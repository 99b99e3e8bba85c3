"""Where jobs run: submission to Slurm or to this machine, and the few Slurm commands that a run needs."""
