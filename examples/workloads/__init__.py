"""Applications, each written once and run in three modes: see `apps.py` and `client.py`."""
