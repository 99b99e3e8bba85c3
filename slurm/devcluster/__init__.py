"""A real Slurm cluster on one machine: every node has its own hostname, network and process tree.

Needs root, Debian's Slurm, munge and MariaDB packages, and nothing from Python outside the standard library.
"""
