"""What every route shares: errors, request ids, authentication, bodies, streams."""
