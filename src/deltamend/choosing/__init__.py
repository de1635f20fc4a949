"""Which method to use: compare all of them, recommend one, or search by evaluation."""
