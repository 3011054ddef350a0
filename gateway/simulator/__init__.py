"""`myna simulate`: the scheduler and the graph themselves, on virtual time, over engines that are modelled.

`clock` is an event loop that jumps from one timer to the next; `engine` an engine as a table of what its steps cost;
`load` the applications and when they come; `policies` what is compared; `run` puts them together and counts.
"""
