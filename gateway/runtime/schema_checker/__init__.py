"""Check JSON values against JSON schemas, with bounded work and without any access to the network.

Both the schema and the value may be hostile. So each visit of a schema, each comparison and each search spends units of
a work budget, and patterns run with RE2. If the budget is used up, or the schema is unusual or malformed, there is no
verdict: a reported violation is always a real one. Resolving references is left to `referencing`, which jsonschema is
built on too. jsonschema itself cannot be bounded from outside: its keywords backtrack in `re`, compare items in pairs,
and write whole values into messages. jsonschema-rs takes no limit either: a schema of 40 levels, each of which refers
to the next one twice, would run for hours.

A schema is read as draft 2020-12, unless `$schema` names draft 4, 6, 7 or 2019-09. `format` is an annotation.
"""
