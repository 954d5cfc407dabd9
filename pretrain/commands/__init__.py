"""What `python -m pretrain` can do, a module a command."""
