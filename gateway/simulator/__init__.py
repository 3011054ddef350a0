"""`myna simulate`: the real scheduler and graph on virtual time, with simulated engines.

`clock` is an event loop on virtual time. `engine` simulates an engine from a table of step costs. `workload` generates
applications and their arrivals. `trace` reads recorded ones. `policies` are the scheduling policies that are compared.
`simulation` runs them.
"""
