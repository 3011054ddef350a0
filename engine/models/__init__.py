"""From a model's name to a module: where it lies, how it is read, and the decoder that runs it."""
