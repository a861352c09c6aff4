"""HTTP in, calls on NATS out."""
