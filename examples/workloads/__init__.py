"""Whole applications, each written once and run in three ways: see `apps.py` and `client.py`."""
