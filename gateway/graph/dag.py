"""Order of calls in a directed acyclic graph: cycles, and depths of calls.

The functions read the graph and change nothing. A node is the index of a new call, or an existing call.
"""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from gateway.graph.call import Call, CallSpec
from gateway.graph.errors import Cycle, TooLarge
from gateway.graph.variable import Variable

Node = int | Call


class Depths(NamedTuple):
    """Number of calls on the longest path to each new call, and to existing calls that new calls make deeper."""

    new: list[int]
    deeper: dict[Call, int]


def order_calls(
    specs: Sequence[CallSpec],
    outputs: Sequence[Sequence[str]],
    reads: Sequence[Mapping[str, str]],
    produced: Mapping[str, int],
    variables: Mapping[str, Variable],
    max_depth: int,
) -> Depths:
    """Return the depths of new calls. Raises Cycle if a call would wait for itself, TooLarge if a path is too long.

    `outputs`: names that each call produces. `reads`: names that each call reads, with the field that reads it first.
    `produced`: index of the call that produces a name.

    An existing call can wait for a new one only through a name that was declared and read before, and is produced now.
    Without such a name, existing calls need not be visited.
    """
    has_waiting_consumers = bool(variables) and any(
        name in variables and variables[name].consumers for name in produced
    )
    if not has_waiting_consumers and not any(reads):
        return Depths([1] * len(specs), {})
    sources: dict[Node, dict[Node, str]] = {}
    """Nodes that each node reads, with the name through which it reads them."""
    depths: dict[Node, int] = {}
    unvisited: list[Node] = list(range(len(specs) - 1, -1, -1))
    while unvisited:
        node = unvisited.pop()
        if node in sources:
            continue
        edges = sources[node] = {}
        depths[node] = 1
        # an existing call still reads its own variable, even if the name was deleted and used again since
        inputs = node.inputs if isinstance(node, Call) else variables
        for name in reads[node] if isinstance(node, int) else node.inputs:
            variable = inputs.get(name)
            source: Node | None = None if variable is not None and variable.is_deleted else produced.get(name)
            if source is None and variable is not None and variable.producer is not None:
                if not has_waiting_consumers:
                    depths[node] = max(depths[node], variable.producer.depth + 1)
                    continue
                source = variable.producer
                unvisited.append(source)
            if source is not None:
                edges.setdefault(source, name)
    try:
        for node in TopologicalSorter(sources).static_order():
            for source in sources[node]:
                depths[node] = max(depths[node], depths[source] + 1)
    except CycleError as error:
        raise _cycle(error.args[1], sources, reads) from None
    for index, spec in enumerate(specs):
        _check_depth(depths[index], spec, max_depth)
    deeper = _deeper_calls(specs, outputs, depths, variables, max_depth) if has_waiting_consumers else {}
    return Depths([depths[index] for index in range(len(specs))], deeper)


def _deeper_calls(
    specs: Sequence[CallSpec],
    outputs: Sequence[Sequence[str]],
    depths: Mapping[Node, int],
    variables: Mapping[str, Variable],
    max_depth: int,
) -> dict[Call, int]:
    """Return the new depths of existing calls that read, directly or not, a variable that is produced now."""
    deeper: dict[Call, int] = {}
    for index, spec in enumerate(specs):
        stack = [(variables[name], depths[index]) for name in outputs[index] if name in variables]
        while stack:
            variable, depth = stack.pop()
            for call in variable.consumers:
                if max(call.depth, deeper.get(call, 0)) <= depth:
                    _check_depth(depth + 1, spec, max_depth)
                    deeper[call] = depth + 1
                    stack += [(output, depth + 1) for output in call.outputs]
    return deeper


def _check_depth(depth: int, spec: CallSpec, max_depth: int) -> None:
    if depth > max_depth:
        raise TooLarge(
            f"{depth} calls would wait for one another in a row; the maximum is {max_depth}", spec.where or None
        )


def _cycle(
    path: Sequence[Node], sources: Mapping[Node, Mapping[Node, str]], reads: Sequence[Mapping[str, str]]
) -> Cycle:
    """Return the error for a cycle. `path`: its nodes, each read by the next one; the first is also the last."""
    cycle = list(path[:0:-1])  # each node reads the next one now
    first = min(index for index, node in enumerate(cycle) if isinstance(node, int))
    cycle = cycle[first:] + cycle[:first]
    names = [sources[reader][source] for reader, source in zip(cycle, cycle[1:] + cycle[:1], strict=True)]
    new_call = cycle[0]
    assert isinstance(new_call, int)
    return Cycle(f"a call would wait for itself: {' <- '.join([names[-1], *names])}", reads[new_call].get(names[0]))
