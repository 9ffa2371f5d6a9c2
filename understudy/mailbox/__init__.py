"""All that is on disk: messages, journal, snapshots, trace; one transaction at a time. Knows nothing of actors' code."""
