"""How Batchlet itself starts ranks, where nobody else has: one module per launcher, beside `base`, which says what each can."""
