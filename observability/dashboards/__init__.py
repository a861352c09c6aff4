"""Grafana's dashboards of the mesh, written as Python; `python -m dashboards` makes the JSON that is provisioned."""
