"""`python -m algomesh_services.cli` is the command `algomesh`."""

from algomesh_services.cli.main import main

main()
