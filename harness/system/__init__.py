"""The machine below everything: processes, and output that a full disk can't break. Imports nothing of ours."""
