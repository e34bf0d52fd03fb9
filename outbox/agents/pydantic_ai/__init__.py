"""Makes agents of Pydantic AI durable: `Agent(…, capabilities=[OutboxDurability()])`. See docs/agents.md."""

from ..attempt import durable, idempotency_key
from ..budget import Budget
from ..errors import BudgetExceeded, ConversationTooLong, ResultRefused
from .durability import OutboxDurability
from .events import report_progress
from .stage import agent_stage
from .transcript import Transcript

__all__ = [
    "Budget",
    "BudgetExceeded",
    "ConversationTooLong",
    "OutboxDurability",
    "ResultRefused",
    "Transcript",
    "agent_stage",
    "durable",
    "idempotency_key",
    "report_progress",
]
