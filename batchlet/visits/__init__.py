"""Looking at a run that is under way, and using its cluster, from outside."""
