"""Videos annotated in pieces: prompts, carried memory, jobs, and labels in and out."""
