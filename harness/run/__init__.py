"""The run folder: where everything that a run does is kept, readable by people and enough to restart from."""
