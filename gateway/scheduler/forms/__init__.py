"""Run the forms of a graph: add the calls that follow from values, and make their results values. See docs/graphs.md.

`runner` has one coroutine for each form. `form_steps` has the steps that they share. A form has no state outside the
graph: after a restart, its coroutine begins again, and finds the calls that it has added.
"""
