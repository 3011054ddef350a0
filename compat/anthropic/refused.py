"""Known fields of Messages requests that are refused, with the reason."""

REFUSED_BY_MESSAGES = {
    "compaction": "the client decides what to omit from a long conversation",
    "container": "this server runs no containers",
    "mcp_servers": "call the tools of MCP servers in the client",
    "thread": "this server stores no threads; send the whole conversation",
}
"""Reasons by field. An error's message contains the reason."""
