"""HadSkip beside its rivals, trained, built and timed alike."""
