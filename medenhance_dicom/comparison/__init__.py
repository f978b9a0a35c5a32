"""Before beside after: pairs of files found, judged again, and shown."""
