"""The prewarmer: learns which algorithm follows which, and has the next one up just before it is needed."""
