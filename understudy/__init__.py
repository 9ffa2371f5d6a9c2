"""Understudy: durable, supervised actors for AI agents, in one asyncio process, on one SQLite file."""

from understudy.actors.actor import Actor, migrate
from understudy.actors.agent import Agent, Content, Message
from understudy.actors.handler import Bound, BoundQuery, Handler, Query, handler, query
from understudy.actors.job import Job, JobStatus
from understudy.actors.limits import Limits
from understudy.actors.step import Step, step
from understudy.actors.system import System
from understudy.actors.tool import Rate, Tool, tool
from understudy.actors.turn import Turn, current_turn
from understudy.endpoint.anthropic import AnthropicProvider
from understudy.endpoint.endpoint import Endpoint
from understudy.errors import *  # noqa: F403
from understudy.mailbox.sqlite import SQLiteStore
from understudy.supervisor.backoff import Backoff
from understudy.supervisor.policy import Policy, answer, dead_letter, on, restart, retry
from understudy.trace.tree import Trace
