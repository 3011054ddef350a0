"""Native functions: tools of MCP servers that the operator allows. Knows no graph; `protocol` is its interface."""
