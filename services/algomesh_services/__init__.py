"""The programs of the mesh: gateway, registry, launcher, ledger, and all of them on one machine."""
