"""Replay of recorded agent sessions on a modelled engine, once for each policy. Command `myna simulate --agents`.

`sessions` reads the recording. `kv_pool` models the KV cache as a tree of extents. `modelled_engine` runs calls in
steps of a table of costs. `replay` runs sessions under one policy. `policy` is the interface of the policies, and
`policies` holds one module for each. `comparison` runs all settings and policies and reports ratios.
"""
