"""Tools of MCP servers that the operator allows. The package does not depend on graphs; `protocol` is its interface."""
