"""What one rank does from start to exit. Knows nothing of Slurm."""
