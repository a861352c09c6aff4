"""Starts and retires instances."""
