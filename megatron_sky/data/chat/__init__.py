"""Conversations to packed token files with a loss mask."""
