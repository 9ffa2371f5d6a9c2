"""Spans and their tree: from stored events to what people look at."""
