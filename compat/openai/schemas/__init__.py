"""Rewrite JSON schemas, so that llguidance enforces them.

llguidance joins the parts of a schema (`allOf`, `$ref`, `anyOf` beside other keywords) by itself. But it lacks some
keywords, rounds integers to floats, and follows a recursive `$ref` without end. `make_enforceable` changes a schema so
that every answer that llguidance accepts is valid for the original, except for keywords that it may drop.
"""
