"""`make demo-prewarm`: the same calls of cold services without and with the pre-warmer, side by side."""
