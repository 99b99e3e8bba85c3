"""From documents to token files: reading, filtering, deduplication, decontamination, tokenising, by datatrove, here or as Slurm jobs."""
