"""Makes agents of the OpenAI Agents SDK durable: `await OutboxRunner.run(agent, …)`. See docs/agents.md."""

from ..attempt import durable, idempotency_key
from ..budget import Budget
from ..errors import BudgetExceeded, ConversationTooLong, ResultRefused
from .events import report_progress
from .place import decision
from .runner import OutboxRunner
from .stage import agent_stage
from .tools import tool_policy
from .transcript import Transcript

__all__ = [
    "Budget",
    "BudgetExceeded",
    "ConversationTooLong",
    "OutboxRunner",
    "ResultRefused",
    "Transcript",
    "agent_stage",
    "decision",
    "durable",
    "idempotency_key",
    "report_progress",
    "tool_policy",
]
