"""One program per peer, run by the peer's own interpreter. They import the peer, Python, and of ours only what needs no
more than Python: `benchmarks.load`, `benchmarks.flushes`, `benchmarks.sample`, `benchmarks.peers.task`.
"""
