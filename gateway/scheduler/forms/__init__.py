"""Run the forms of a graph: add the calls that follow from values, and make their results values. See docs/graphs.md.

`runner` has one coroutine for each form. `form_steps` has what they share. A form keeps no state that is not in the
graph: after a restart, its coroutine begins again, and finds the calls that it has added.
"""
