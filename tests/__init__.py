"""Tests: unit (no I/O), integration (real servers and processes), wire (golden files)."""
