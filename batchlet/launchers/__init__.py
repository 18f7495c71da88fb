"""How Batchlet itself starts ranks, where nobody else has."""
