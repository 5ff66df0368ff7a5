"""Conversations as datasets hold them: messages with reasoning and tool calls, and the parts of answers."""

from uld_ds.conversations.messages import Message, read_mapping, read_messages, read_tools
from uld_ds.conversations.parts import KINDS, Part, PartKind, parts_of

__all__ = ["KINDS", "Message", "Part", "PartKind", "parts_of", "read_mapping", "read_messages", "read_tools"]
