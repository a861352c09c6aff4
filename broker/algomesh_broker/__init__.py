"""NATS as this mesh speaks it: subjects, messages, codec, connection, streams, directory."""
