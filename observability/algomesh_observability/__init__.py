"""Logs, traces and metrics of the mesh."""
