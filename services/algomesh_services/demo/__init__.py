"""`make demo`: a pipeline of separate services classifies real posts, and says what that cost."""
