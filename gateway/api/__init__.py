"""One file a resource. Translates between wire and domain, decides nothing."""
