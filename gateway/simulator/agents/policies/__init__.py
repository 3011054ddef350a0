"""Policies that the replay compares, one module for each."""
