"""Models: where a checkpoint is, how it is read, and how it is computed."""
