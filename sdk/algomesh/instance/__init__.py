"""The runtime inside an instance: boot, slots, lanes, user code."""
