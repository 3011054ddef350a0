"""Limits and budgets of API keys: meters, reservations, and what several gateways share."""
