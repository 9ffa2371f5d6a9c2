"""What a peer's figure stands for, in a sentence: the same word does not promise the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping

# By how the peer's name begins; the longest one that fits is taken.
_MEANINGS: Mapping[str, str] = {
    "DBOS": "A workflow of one step for an ask: its start, the step's result and its end are stored. No mailbox: nothing puts "
    "two calls to the same entity in order.",
    "LangGraph": "A run of a graph on a thread of its own, with checkpoints. No mailbox, and no restart by itself: after a crash "
    "the application has to find and resume its threads.",
    "Restate": "An invocation accepted, its state and result logged by a server; the step itself runs in a service process that "
    "the server calls over HTTP.",
    "NATS": "A message stored and acknowledged by a server. What the application does with it, and what that changes, is not "
    "the server's, so less is promised than for a turn.",
    "durable-actors": "Its development mode with local storage; each actor is a process.",
    "autogen": "A message to an agent in the same process; nothing is kept.",
    "pykka": "A message to a thread in the same process; nothing is kept.",
    "xoscar": "A message to an actor of a pool; nothing is kept.",
    "thespian": "A message to an actor; nothing is kept.",
    "ray": "A call of an actor in another process; nothing is kept when that one dies.",
}


def meaning(peer: str) -> str:
    """Return the sentence; nothing for a peer of which its own settings say it all."""
    fitting = [prefix for prefix in _MEANINGS if peer.lower().startswith(prefix.lower())]
    return _MEANINGS[max(fitting, key=len)] if fitting else ""
