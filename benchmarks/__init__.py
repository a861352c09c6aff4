"""Figures of the mesh, each as a ratio to something run in the same minute on the same machine."""
