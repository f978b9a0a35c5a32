"""Reprocess whole archives: find what is there, plan, run, resume, report."""
