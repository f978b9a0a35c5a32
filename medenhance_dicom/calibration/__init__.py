"""Limits for the gate from data: honest enhancements set them, altered ones tell what they miss."""
