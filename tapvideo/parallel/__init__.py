"""Several ranks: how they are laid out, who holds which tokens, and what they tell each other."""
