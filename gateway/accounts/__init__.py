"""Accounts of API keys: prices, spend, limits and budgets."""
