"""The tasks, one file each: the only place where the stages meet. Each reads as the story of its task."""
