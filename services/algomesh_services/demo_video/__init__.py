"""`make demo-video`: a video is split, painted segment by segment by separate services, and joined again."""
