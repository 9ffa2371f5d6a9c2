"""What users write and how it lives: actors, refs, turns, steps, tools, agents, the system."""
