"""The keywords of JSON Schema: each is a function of a check, a node and the keyword's operand, see `Keyword`."""
