"""The mesh in containers, on a real engine: `make compose-test`, apart from the other tests."""
