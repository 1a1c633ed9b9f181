"""What users send: request parameters, the model of their joint distribution, traces and arrival times."""

from llmpilot.workload.arrivals import gamma, poisson, replay
from llmpilot.workload.conversations import (
    Chat,
    Conversation,
    ConversationSource,
    DrawnConversations,
    TurnRequests,
)
from llmpilot.workload.joint import RequestStream, WorkloadModel, fit
from llmpilot.workload.layouts import TraceColumns
from llmpilot.workload.requests import PARAMETERS, Requests, concatenate, from_lengths
from llmpilot.workload.sessions import TracedConversations, read_sessions
from llmpilot.workload.shipped import SHIPPED, Workload, load_conversations, load_workload
from llmpilot.workload.thinking import ThinkTimes
from llmpilot.workload.trace import Trace, TraceChunk, TraceReading, open_trace, read_trace

__all__ = [
    "PARAMETERS",
    "SHIPPED",
    "Chat",
    "Conversation",
    "ConversationSource",
    "DrawnConversations",
    "RequestStream",
    "Requests",
    "ThinkTimes",
    "Trace",
    "TraceChunk",
    "TraceColumns",
    "TraceReading",
    "TracedConversations",
    "TurnRequests",
    "Workload",
    "WorkloadModel",
    "concatenate",
    "fit",
    "from_lengths",
    "gamma",
    "load_conversations",
    "load_workload",
    "open_trace",
    "poisson",
    "read_sessions",
    "read_trace",
    "replay",
]
