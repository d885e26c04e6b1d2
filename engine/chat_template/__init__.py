"""Chat templates: from messages to the prompt's text and tokens."""

from engine.chat_template.prompt import render_chat_tokens
from engine.chat_template.template import PLAIN_CHAT_TEMPLATE, ChatTemplate

__all__ = ["PLAIN_CHAT_TEMPLATE", "ChatTemplate", "render_chat_tokens"]
