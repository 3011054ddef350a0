"""Decides what runs where and in which order. Sees calls and engines, not HTTP."""

from gateway.scheduler.dispatcher import Overloaded, Scheduler, Stopping
from gateway.scheduler.rank import Order

__all__ = ["Order", "Overloaded", "Scheduler", "Stopping"]
