"""What is seen of a run: the board that ranks write, the exporter that reads it, collectors, discovery. Knows no torch."""
