"""What understudy costs, beside the floors under it: `python -m benchmarks`."""
