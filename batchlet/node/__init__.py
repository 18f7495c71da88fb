"""What happens on a node: how a rank attaches to the agent of its node, and what the agent does."""
