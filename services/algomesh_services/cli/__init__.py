"""The `algomesh` command."""
