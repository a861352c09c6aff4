"""What callers and authors of algorithms import."""
