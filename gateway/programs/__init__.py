"""Programs: what the gateway knows of applications that declare nothing, from their requests alone. Pure.

`tool_times` learns how long tools run. `service` orders calls by their work and by the service of their programs.
`pausing` decides which calls wait at a tool boundary, so that the KV of the others fits.
"""
