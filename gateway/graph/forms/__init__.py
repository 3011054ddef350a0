"""Forms of a graph: calls that add further calls once values are known. See docs/graphs.md.

`form` has the forms as data. `names` renames what the calls of a form read and generate. `expansion` returns the calls
that a form adds. `list_scanner` finds the elements of a JSON list while it is generated. `results` reads elements of a
map's result before all of them are ready.
"""
