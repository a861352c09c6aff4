"""The whole mesh as supervised children of one process."""
