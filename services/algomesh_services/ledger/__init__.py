"""The record of every run."""
