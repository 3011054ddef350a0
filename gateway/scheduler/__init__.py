"""Scheduling of calls on engines: order, placement, execution. It knows calls and engines, not HTTP."""

from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.priority import Order, Priorities
from gateway.scheduler.scheduler import Overloaded, Scheduler, Stopping

__all__ = ["CostModel", "Order", "Overloaded", "Priorities", "Scheduler", "Stopping"]
