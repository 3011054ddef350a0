"""Other people's shapes, and nothing else."""
