"""The command line: `algomesh`."""
