"""Endpoints, one file for each resource. They translate between wire formats and the graph, and decide nothing."""
