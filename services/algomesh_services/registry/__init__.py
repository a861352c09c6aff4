"""Who may do what, and which algorithms and versions exist."""
