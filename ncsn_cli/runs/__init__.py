"""The files that a run leaves on disk, and the signals that stop a run."""
