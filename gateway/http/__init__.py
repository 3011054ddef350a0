"""HTTP layer that all routes share: errors, request ids, authentication, bodies and streams."""
