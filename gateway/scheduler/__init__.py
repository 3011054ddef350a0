"""Decides what runs where and in which order. Sees calls and engines, not HTTP."""

from gateway.scheduler.dispatcher import Overloaded, Scheduler, Stopping
from gateway.scheduler.estimate import Estimates
from gateway.scheduler.rank import Order, Priorities

__all__ = ["Estimates", "Order", "Overloaded", "Priorities", "Scheduler", "Stopping"]
