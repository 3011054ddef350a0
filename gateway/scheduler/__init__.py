"""Decides what runs where and in which order. Sees calls and engines, not HTTP."""

from gateway.scheduler.dispatcher import Overloaded, Scheduler, Stopping

__all__ = ["Overloaded", "Scheduler", "Stopping"]
