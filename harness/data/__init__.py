"""Token files, the exact order of samples, the loader that reads them, and how they are prepared. Knows no torch, Slurm or trainer."""
