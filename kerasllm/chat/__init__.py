"""Conversations: messages, the template that makes text of them, their tokens, and talking with a model."""
